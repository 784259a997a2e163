"""Figures that others have published, read from docs/published.md, to stand beside those that are measured."""

import functools
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).with_name("published.md")  # a link to docs/published.md, of which a wheel holds a copy
NOT_GIVEN, ZERO_SHOT = "–", "zero-shot"
SAME_TEST = ("flickr30k_cn", "flickr30k_cna")  # sets with one test split; see the page
# Column of the page -> name of the figure.
COLUMNS = {
    **{f"{way} R@{k}": f"{direction}_r{k}" for way, direction in (("I2T", "i2t"), ("T2I", "t2i")) for k in (1, 5, 10)},
    "R@M": "mean",
}


@dataclass(frozen=True)
class Published:
    """One row of the page.

    setting: "zero-shot" or "fine-tuned"; "on SET" where that was on another set with the same test split.
    split: "" where the source does not name it.
    figures: "i2t_r1" ... "t2i_r10", "mean", in per cent, as far as the source gives them. source: in full.
    """

    model: str
    setting: str
    split: str
    figures: dict[str, float]
    source: str


def published_retrieval(dataset: str) -> list[Published]:
    """The published figures of a prepared dataset; none where it is none of the article's.

    Args:
        dataset: its name, such as "flickr30k_cn".
    """
    sources = {row["source"]: row["what"] for row in table("## Sources")}
    sets = SAME_TEST if dataset in SAME_TEST else (dataset,)
    return [
        Published(
            row["model"],
            _setting(row, dataset),
            row["split"].replace(NOT_GIVEN, ""),
            {name: float(row[column]) for column, name in COLUMNS.items() if row[column] != NOT_GIVEN},
            sources[row["source"]],
        )
        for row in table("## Retrieval")
        if _name(row) in sets
    ]


def _setting(row: dict[str, str], dataset: str) -> str:
    return row["setting"] if row["setting"] == ZERO_SHOT or _name(row) == dataset else f"on {row['set']}"


def _name(row: dict[str, str]) -> str:
    """The set of a row as prepared datasets are called."""
    return row["set"].lower().replace("-", "_")


@functools.cache
def table(heading: str) -> tuple[dict[str, str], ...]:
    """The rows of the one table below a heading of the page, by its columns."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"{heading}\n")
    lines = [line for line in section.partition("\n## ")[0].splitlines() if line.startswith("|")]
    head, _, *rows = map(_cells, lines)
    return tuple(dict(zip(head, row, strict=True)) for row in rows)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
