"""The look of the page: one column on a telephone, two stages side by side on a desk."""

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #d9dfe6; --right: #0a7d4f; --wrong: #b3401e; --back: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 16px/1.5 system-ui, "Noto Sans", "PingFang SC",
  "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", sans-serif; overflow-wrap: break-word; }
header, main, footer { max-width: 1180px; margin: 0 auto; padding: 0 16px; }
h1 { font-size: 1.6rem; margin: 1.2rem 0 .4rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .5rem; }
p { margin: .4rem 0; max-width: 75ch; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1rem; margin: .8rem 0; }
a { color: #0b5cad; }
.missing { border-left: 4px solid #c98a00; background: #fff8e6; padding: .4rem .8rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th[scope=row] { text-align: left; font-weight: 400; }
.facts th[scope=row] { color: var(--soft); white-space: nowrap; padding-left: 0; }
.facts td { overflow-wrap: anywhere; }
.figures td, .figures th[scope=col] { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.figures th[scope=row] { white-space: nowrap; padding-left: 0; }
pre { background: var(--back); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem;
  margin: .3rem 0 1rem; overflow-x: auto;
  font: 13px/1.5 ui-monospace, Menlo, Consolas, "Noto Sans Mono CJK SC", monospace; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--soft); }
figure { margin: 1.2rem 0; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
img { display: block; max-width: 100%; height: auto; }
img.curves { min-width: 640px; }
img.maps { max-width: none; margin: .6rem 0; }
img.of2 { width: 380px; } img.of3 { width: 540px; } img.of4 { width: 700px; }
img.of5 { width: 860px; } img.of6 { width: 1020px; }
.example { border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; margin: .8rem 0; }
.query { font-size: 1.15rem; font-weight: 600; }
.query img { width: 120px; }
.stages { display: grid; grid-template-columns: 1fr 1fr; gap: .4rem 1.6rem; }
.stages > div { min-width: 0; }
.stage { color: var(--soft); font-size: .9rem; }
.candidates { list-style: none; margin: .3rem 0; padding: 0;
  display: grid; grid-template-columns: repeat(5, 1fr); gap: .4rem; }
.candidates li { border: 3px solid transparent; border-radius: 6px; padding: 2px; min-width: 0; }
.candidates li.right { border-color: var(--right); }
.candidates img { width: 100%; }
.example.i2t { display: grid; grid-template-columns: 120px 1fr; gap: 0 1.4rem; }
.i2t .candidates { grid-template-columns: 1fr; gap: .2rem; }
.i2t .candidates li { display: flex; justify-content: space-between; gap: .8rem; padding: 2px 6px; }
.i2t .scores { text-align: right; white-space: nowrap; }
.i2t .scores br { display: none; }
.scores { display: block; color: var(--soft); font-size: .75rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tick { color: var(--right); font-weight: 700; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(420px, 1fr)); gap: .8rem; }
.pair { display: flex; gap: .9rem; border: 1px solid var(--line); border-radius: 8px; padding: .6rem; min-width: 0; }
.pair img { width: 110px; flex: none; align-self: flex-start; }
.pair p { margin: 0 0 .4rem; }
.pair .right { color: var(--right); } .pair .foil { color: var(--wrong); }
footer { color: var(--soft); font-size: .85rem; padding-bottom: 2rem; margin-top: 2rem; }
@media (max-width: 700px) {
  .stages, .example.i2t { grid-template-columns: 1fr; }
  .facts th[scope=row], .figures th[scope=row], .figures th[scope=col] { white-space: normal; }
  .figures td, .figures th[scope=row], .figures th[scope=col] { padding: .25rem .3rem; font-size: .8rem; }
  .i2t .scores br { display: inline; }
  .candidates { gap: .2rem; }
  .scores { font-size: .68rem; }
  .pairs { grid-template-columns: 1fr; }
}
"""
