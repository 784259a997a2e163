"""The whole page: one HTML file that needs no other file, no script and no network."""

import re
from collections.abc import Mapping, Sequence

import r2d2_jax
from r2d2_jax.report.commands import Command, commands
from r2d2_jax.report.figures import measured_section, trained_section
from r2d2_jax.report.findings import Findings
from r2d2_jax.report.markup import escaped, image, paragraph, preformatted, section
from r2d2_jax.report.pictures import data_uri
from r2d2_jax.report.shown import changes_section, foils_section, maps_section, retrieval_sections
from r2d2_jax.report.style import STYLE
from r2d2_jax.report.subject import Subject

# Pictures of a run or an evaluation -> what they show, in this order; others follow.
CURVES = {
    "losses": "The terms of the loss, and their sum",
    "recalls": "Recall on the validation split during training",
    "evaluation": "The mean of all recalls, and what else was evaluated",
    "accuracies": "Accuracies on the batches of training",
    "gradients": "What each term weighs: the norm of its gradient",
    "optimisation": "Rate, gradient norm, temperature, teacher and queue",
    "speed": "Pairs per second, and the time spent waiting for data",
    "matching": "How the match probability separates",
    "confusion": "Which class is taken for which",
}
FOLDED = ("gradients", "accuracies", "optimisation", "speed")  # for those who want to know more
# The browser itself then loads nothing from anywhere, whatever the page should contain.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
INTRODUCTION = (
    "R2D2 finds pictures by Chinese texts and texts by pictures, in two stages: a dual encoder ranks everything there "
    "is, and cross encoders re-rank the best candidates. This page says what was trained, how good it is, and shows "
    "answers, right ones and wrong ones."
)


def page(subject: Subject, findings: Findings, curves: Mapping[str, bytes]) -> str:
    """The report as HTML.

    Args:
        subject: what it is about.
        findings: what was computed.
        curves: name -> bytes of the PNG files that the run or the evaluation has drawn.
    """
    sections = [
        trained_section(subject),
        measured_section(subject),
        changes_section(findings),
        _curves(curves),
        *retrieval_sections(findings),
        foils_section(findings),
        maps_section(findings),
        _next(list(commands(subject, _caption(findings)))),
    ]
    sections = [each for each in sections if each]
    title = escaped(f"Report: {subject.name}")
    missing = "".join(paragraph(each, "missing") for each in (*subject.missing, *findings.missing))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{paragraph(INTRODUCTION)}
{missing}
{_contents(sections)}
</header>
<main>
{chr(10).join(sections)}
</main>
<footer>{paragraph(f"Written by r2d2_jax {r2d2_jax.__version__}.")}</footer>
</body>
</html>
"""


def _contents(sections: Sequence[str]) -> str:
    """Links to the sections, from their own headings, which are escaped already."""
    found = [re.match(r'<section id="([^"]+)">\n<h2>(.*?)</h2>', each) for each in sections]
    links = [f'<a href="#{each[1]}">{each[2]}</a>' for each in found if each]
    return f"<nav>{' '.join(links)}</nav>"


def _curves(curves: Mapping[str, bytes]) -> str:
    ordered = sorted(curves, key=lambda name: (list(CURVES).index(name) if name in CURVES else len(CURVES), name))
    folded = [_figure(name, curves[name]) for name in ordered if name in FOLDED]
    more = f"<details><summary>more curves</summary>\n{chr(10).join(folded)}\n</details>" if folded else ""
    return section("curves", "Curves", *(_figure(name, curves[name]) for name in ordered if name not in FOLDED), more)


def _figure(name: str, png: bytes) -> str:
    what = CURVES.get(name, name)
    picture = image(data_uri(png, "png"), what, "curves")
    return f'<figure><figcaption>{escaped(what)}</figcaption><div class="wide">{picture}</div></figure>'


def _next(found: Sequence[Command]) -> str:
    text = (
        "Commands of the environment in which this package is installed; where that is .venv in a clone, activate it "
        "first: source .venv/bin/activate. They name the paths of this run, and work in any folder."
    )
    listed = [f"{paragraph(each.why)}{preformatted(each.line)}" for each in found]
    return section("next", "How to go on", paragraph(text), *listed)


def _caption(findings: Findings) -> str:
    return findings.split.captions[0] if findings.split is not None else ""
