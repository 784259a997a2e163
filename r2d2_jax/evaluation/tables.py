"""What `measure` returns, as text for people; every figure comes from its document."""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from r2d2_jax.lineage import described

_WAYS = ("i2t", "t2i")
_STAGES = {"dual": "dual", "cross": "cross", "reranked": "re-ranked", "match": "match"}
_COLUMNS = 80  # of a terminal
_CLASSES = 50  # so many classes are listed in full; of more, only the worst


def table(document: dict[str, Any]) -> str:
    """Checkpoint and lineage, data, figures with their 95 % intervals, and published ones beside."""
    own: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
        "retrieval": _retrieval,
        "matching": _matching,
        "classification": _classification,
    }
    sections = [_head(document), own[document["task"]](document), _published(document["published"])]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines)


def _head(document: dict[str, Any]) -> Iterator[str]:
    checkpoint, data, settings = document["checkpoint"], document["data"], document["settings"]
    yield from _wrapped("checkpoint", f"{checkpoint['path']} ({checkpoint['weights']}): {checkpoint['summary']}")
    for line in described(checkpoint["lineage"]):
        yield from _wrapped("", line)
    counts = [f"{value:,} {name.replace('_', ' ')}" for name, value in document["counts"].items() if value]
    yield from _wrapped("data", f"{data['folder']}, split {data['split']}: {', '.join(counts)}")
    shown = {name: value for name, value in settings.items() if value or name == "rerank"}
    listed = ", ".join(f"{name} {_value(value)}" for name, value in shown.items() if name != "templates")
    yield from _wrapped("settings", listed)
    if templates := settings.get("templates"):
        yield from _wrapped("templates", "  ".join(templates))
    yield f"measured    {document['date']}, {document['seconds']:,} s, r2d2_jax {document['version']}"


def _value(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _retrieval(document: dict[str, Any]) -> Iterator[str]:
    rows = [(f"{way}_r{k}", f"{way.upper()} R@{k}") for way in _WAYS for k in (1, 5, 10)]
    yield from _figures(document, [*rows, ("mean", "R@M")])
    right = "right" if document["settings"]["same_text_is_right"] else "wrong without --same_text_is_right"
    yield f"{document['counts']['repeated_texts']:,} texts have the very characters of a text of another image;"
    yield f"to find that one is {right}"


def _matching(document: dict[str, Any]) -> Iterator[str]:
    split, best = document["settings"]["threshold_split"], document["threshold_is_best_of_this_split"]
    where = "best of this very split" if best else f"best of {split}"
    at = ", ".join(
        f"{_STAGES[stage]} {figures['threshold']:.4f}"
        for stage, figures in document["figures"].items()
        if "threshold" in figures
    )
    rows = [
        ("auc", "AUC"),
        ("accuracy", "accuracy, threshold"),
        ("match_accuracy", "  of pairs that match"),
        ("no_match_accuracy", "  of pairs that do not"),
        ("half_accuracy", "accuracy at 0.5"),
        ("half_match_accuracy", "  of pairs that match"),
        ("half_no_match_accuracy", "  of pairs that do not"),
    ]
    yield from _figures(document, rows)
    yield f"threshold: the {where} ({at})"
    if best:
        yield "no other split has chosen it: the accuracy at it is an upper bound, not a result"


def _classification(document: dict[str, Any]) -> Iterator[str]:
    names = [name for name in document["figures"]["dual"] if name != "per_class"]
    rows = [(name, f"top-{name.removeprefix('top')}") for name in names]
    yield from _figures(document, [*rows, ("per_class", "top-1, mean over classes")])
    classes, worst = document["classes"], document["worst_classes"]
    shown = classes if len(classes) <= _CLASSES else worst
    width = max([len("class"), *(columns_of(each["name"]) for each in shown)])
    yield ""
    yield f"{padded('class', width)}{'images':>9}{'top-1':>8}"
    for each in shown:
        top1 = "-" if each["top1"] is None else f"{each['top1']:.1f}"
        yield f"{padded(each['name'], width)}{each['images']:>9,}{top1:>8}"
    if len(classes) > len(shown):
        yield f"the {len(shown)} worst of {len(classes)} classes; the JSON file has all"
    if worst:
        yield ""
        yield "taken for, of the worst classes"
    for each in worst:
        others = ", ".join(f"{other['class']} {other['images']:,}" for other in each["confused"])
        yield from _wrapped(each["name"], others, indent=width + 2)


def _figures(document: dict[str, Any], rows: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Rows of (name, label): for each stage a figure and its interval, then chance."""
    figures, intervals = document["figures"], document["intervals"]
    stages = [stage for stage in _STAGES if stage in figures]
    rows = [(name, label) for name, label in rows if any(name in figures[stage] for stage in stages)]
    width = max(len("per cent"), *(len(label) for _, label in rows))
    yield f"{'per cent':<{width}}" + "".join(f"{_STAGES[stage]:>21}" for stage in stages) + f"{'chance':>8}"
    for name, label in rows:
        cells = (_cell(figures[stage].get(name), intervals.get(stage, {}).get(name)) for stage in stages)
        chance = figures["chance"].get(name)
        yield f"{label:<{width}}" + "".join(f"{cell:>21}" for cell in cells) + f"{_number(chance):>8}"
    yield "in brackets: 95 % of what other such images would give (bootstrap over images)"


def _cell(value: float | None, interval: Sequence[float] | None) -> str:
    return _number(value) if interval is None else f"{_number(value)} ({interval[0]:.1f}-{interval[1]:.1f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _published(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Figures that others report, marked as such."""
    if not rows:
        return
    sources = list(dict.fromkeys(row["source"] for row in rows))
    width = max(len(_title(row)) for row in rows)
    yield f"{'published, not measured here':<{width}}{'I2T R@1/5/10':>16}{'T2I R@1/5/10':>16}{'R@M':>6}"
    for row in rows:
        ways = (_recalls(row["figures"], way) for way in _WAYS)
        mean = _number(row["figures"].get("mean"))
        where = sources.index(row["source"]) + 1
        yield f"{_title(row):<{width}}" + "".join(f"{way:>16}" for way in ways) + f"{mean:>6} [{where}]"
    for number, source in enumerate(sources, start=1):
        yield from _wrapped(f"[{number}]", source, indent=4)


def _title(row: dict[str, Any]) -> str:
    return f"{row['model']}, {row['setting']}" + (f", {row['split']}" if row["split"] else "")


def _recalls(figures: dict[str, float], way: str) -> str:
    found = [figures.get(f"{way}_r{k}") for k in (1, 5, 10)]
    return "-" if found == [None] * 3 else "/".join(map(_number, found))


def _wrapped(label: str, text: str, indent: int = 12) -> Iterator[str]:
    """The label, and the words of the text beside it in lines of `_COLUMNS`; a longer word has a line of its own."""
    line = padded(label, indent)
    for number, word in enumerate(text.split(" ")):
        if number and columns_of(line) + 1 + columns_of(word) > _COLUMNS:
            yield line.rstrip()
            line = " " * indent + word
        else:
            line += f" {word}" if number else word
    yield line.rstrip()


def columns_of(text: str) -> int:
    """Columns of a terminal that a text takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def padded(text: str, width: int) -> str:
    """The text, filled up to `width` columns of a terminal."""
    return text + " " * (width - columns_of(text))
