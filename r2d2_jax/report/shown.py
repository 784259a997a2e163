"""What was asked and answered, as sections: what re-ranking changed, retrievals, swapped pairs, heat maps."""

from collections.abc import Callable, Sequence

import numpy as np

from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.evaluation.ground_truth import I2T, T2I
from r2d2_jax.evaluation.ranks import NEVER
from r2d2_jax.report.answers import Answers, Stage, changes, evenly, right_ones, wrong_ones
from r2d2_jax.report.findings import Findings
from r2d2_jax.report.markup import chinese, escaped, image, paragraph, section, table
from r2d2_jax.report.pictures import data_uri, uris_of

EACH = 4  # examples of a kind: right and wrong, both ways
PAIRS = 4  # swapped pairs chosen rightly, and wrongly
WAYS = {T2I: "From a caption to pictures", I2T: "From a picture to captions"}
QUERIES = {T2I: "captions", I2T: "pictures"}
Uris = Callable[[int], str]


def changes_section(findings: Findings) -> str:
    """What re-ranking repaired and what it broke, counted over the asked queries."""
    rows = []
    for direction in WAYS:
        if direction in findings.answers and (counted := changes(findings.answers[direction])) is not None:
            found = findings.answers[direction]
            asked = f"{counted.queries:,}" + (f" of {found.total:,}" if counted.queries < found.total else "")
            cells = (counted.right_before, counted.repaired, counted.broken, counted.right_after)
            moved = (counted.nearer, counted.farther)
            rows.append((WAYS[direction].lower(), asked, *(f"{count:,}" for count in (*cells, *moved))))
    if not rows:
        return ""
    text = (
        "First answers counted before and after re-ranking. Repaired: the first candidate was wrong and is now right. "
        "Broken: it was right and is now wrong. Nearer and farther: queries whose right answer moved up or down at all."
    )
    head = ("", "queries", "right before", "repaired", "broken", "right after", "nearer", "farther")
    return section("stages", "What the second stage changes", paragraph(text), table(head, rows, "figures"))


def retrieval_sections(findings: Findings) -> list[str]:
    """For each direction, queries that were answered rightly and wrongly with the best candidates of each stage."""
    split = findings.split
    if split is None:
        return []
    uris = uris_of(split)
    return [_retrieval(findings.answers[direction], split, uris) for direction in WAYS if direction in findings.answers]


def _retrieval(found: Answers, split: EvaluationSplit, uris: Uris) -> str:
    right, wrong = right_ones(found, EACH), wrong_ones(found, EACH)
    total_right = int(np.sum(found.last.ranks == 0))
    asked, last = len(found.queries), "re-ranking" if found.reranked else "the dual encoder"
    chosen = (
        f"Nothing here was picked by hand. The {asked:,} asked {QUERIES[found.direction]} were sorted into those whose "
        f"first candidate is right after {last} and the others; the right ones were put in order by the rank that the "
        "dual encoder gave, the others by their final rank, and from each list some were taken at even distances. "
        "Right answers have a green frame and a tick."
    )
    orders = "The dual encoder puts candidates in order by cosine"
    orders += ", re-ranking by match probability + cosine." if found.reranked else "."
    parts = [paragraph(orders), paragraph(chosen)]
    for title, rows, count in (("Right", right, total_right), ("Wrong", wrong, asked - total_right)):
        if len(rows):
            parts.append(f"<h3>{escaped(f'{title}, {len(rows)} of {count:,}')}</h3>")
            parts += [_example(found, int(row), split, uris) for row in rows]
    return section(f"retrieval-{found.direction}", WAYS[found.direction], *parts)


def _example(found: Answers, row: int, split: EvaluationSplit, uris: Uris) -> str:
    query = int(found.queries[row])
    if found.direction == T2I:
        asked = f'<p class="query">{chinese(split.captions[query])}</p>'
    else:
        asked = f'<p class="query">{image(uris(query), f"the picture {split.image_ids[query]}", "asked")}</p>'
    stages = [("dual encoder", found.dual), *([("re-ranked", found.reranked)] if found.reranked else [])]
    listed = "\n".join(_stage(name, stage, row, found.direction, split, uris) for name, stage in stages)
    return f'<article class="example {found.direction}">\n{asked}\n<div class="stages">\n{listed}\n</div>\n</article>'


def _stage(name: str, stage: Stage, row: int, direction: str, split: EvaluationSplit, uris: Uris) -> str:
    rank = int(stage.ranks[row])
    place = "is not found" if rank == NEVER else f"has rank {rank + 1:,}"
    head = f'<p class="stage"><b>{escaped(name)}</b>: the right answer {place}</p>'
    items = []
    for best, right, cosine, match in zip(
        stage.best[row], stage.right[row], stage.cosine[row], stage.match[row], strict=True
    ):
        scores = f"cosine {cosine:.3f}" + ("" if np.isnan(match) else f" <br>match {match:.3f}")
        tick = '<span class="tick" title="right">✓</span> ' if right else ""
        if direction == T2I:
            what = image(uris(int(best)), f"the picture {split.image_ids[best]}")
        else:
            what = chinese(split.captions[best])
        kind = ' class="right"' if right else ""
        items.append(f'<li{kind}>{what}<span class="scores">{tick}{scores}</span></li>')
    return f'<div>{head}\n<ol class="candidates">\n' + "\n".join(items) + "\n</ol></div>"


def foils_section(findings: Findings) -> str:
    """Pictures with their true caption and the foil: what was chosen, and how sure the model is."""
    split, scores = findings.foil_split, findings.foils
    if split is None or scores is None:
        return ""
    total = scores.cosine if scores.match is None else scores.cosine + scores.match
    margin = total[:, 0] - total[:, 1]
    right, wrong = (np.flatnonzero(each) for each in (margin > 0, ~(margin > 0)))
    by = "cosine" if scores.match is None else "cosine and match probability together"
    text = (
        f"Each of {split.num_images:,} pictures has its true caption and a foil in which parts have changed places. By "
        f"{by} the true caption is chosen for {len(right):,} pictures and not for {len(wrong):,}; a tie is not right. "
        "Each kind was put in order by how far the scores of the two captions lie apart, and some were taken at even "
        "distances."
    )
    uris, parts = uris_of(split), [paragraph(text)]
    for title, rows in (("Right", right), ("Wrong", wrong)):
        ordered = rows[np.argsort(margin[rows], kind="stable")]
        chosen = ordered[evenly(len(ordered), PAIRS)]
        if len(chosen):
            parts.append(f"<h3>{escaped(f'{title}, {len(chosen)} of {len(rows):,}')}</h3>")
            cards = [_pair(int(row), findings, uris) for row in chosen]
            parts.append('<div class="pairs">\n' + "\n".join(cards) + "\n</div>")
    return section("foils", "Swapped pairs", *parts)


def _pair(row: int, findings: Findings, uris: Uris) -> str:
    split, scores = findings.foil_split, findings.foils
    assert split is not None
    assert scores is not None
    texts = [split.captions[text] for text in split.pairs[2 * row : 2 * row + 2, 1]]
    lines = []
    for place, (name, kind) in enumerate((("true", "right"), ("foil", "foil"))):
        said = f"cosine {scores.cosine[row, place]:.3f}"
        if scores.match is not None:
            said += f", match {scores.match[row, place]:.3f}"
        lines.append(f'<p class="{kind}">{name}: {chinese(texts[place])}<span class="scores">{said}</span></p>')
    picture = image(uris(row), f"the picture {split.image_ids[row]}")
    return f'<article class="pair">{picture}<div>{"".join(lines)}</div></article>'


def maps_section(findings: Findings) -> str:
    """Heat maps of a few captions."""
    if not findings.maps:
        return ""
    text = (
        "Where the text-image cross encoder looks in a picture for each thing that its caption names. The words are "
        "masked, so that the model has to look for them, and the map shows what they read more than the "
        "rest of the caption does. The pictures lie at even distances in the split, and each has the first of its "
        "captions that names a thing."
    )
    drawn = [_drawn(found.caption, found.things, found.png) for found in findings.maps]
    return section("maps", "Where the model looks", paragraph(text), *drawn)


def _drawn(caption: str, things: Sequence[str], png: bytes) -> str:
    alternative = f"{caption}: {'、'.join(things)}"
    return f'<div class="wide">{image(data_uri(png, "png"), alternative, f"maps of{1 + len(things)}")}</div>'
