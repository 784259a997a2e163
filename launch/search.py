"""Searches one's own photographs: a folder is indexed, then asked in two stages, here or on a page in a browser.

`python launch/search.py --checkpoint=runs/mine --photos=FOLDER --query=一只狗在草地上`
`python launch/search.py --checkpoint=runs/mine --photos=FOLDER --serve`
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import r2d2_jax
from r2d2_jax.config.model import DTYPES
from r2d2_jax.data.text.blank import is_blank
from r2d2_jax.errors import UserError
from r2d2_jax.extras import SERVER, require
from r2d2_jax.inference import Ranker
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import run
from r2d2_jax.paths import user_path
from r2d2_jax.search.files import shown
from r2d2_jax.search.index import APPROXIMATE_ABOVE, Update, bring_up_to_date, default_folder
from r2d2_jax.search.query import (
    Answer,
    captions_for_image,
    checked_query,
    pictures_for_image,
    pictures_for_text,
)
from r2d2_jax.search.view import IndexView

logger = logging.getLogger(__name__)

CANDIDATES, TOP = 32, 10
HOST, PORT = "127.0.0.1", 8360
LONGEST_QUESTION = 80  # characters of it above a table
HEADER = ("rank", "by cosine", "cosine", "match", "")


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Indexes the photographs of a folder, or what has changed there, and finds pictures for a sentence "
        "or a picture, or captions for a picture.",
        allow_abbrev=False,
    )
    model = "A run's workdir, a converted or transformers folder, or a published file."
    parser.add_argument("--checkpoint", required=True, help=model)
    parser.add_argument("--photos", help="A folder of photographs, itself and below; it is only read.")
    parser.add_argument("--index", help="The index's folder; by default one in ~/.cache/r2d2_jax/search.")
    parser.add_argument("--no_update", action="store_true", help="Search the index as it is; look for no changes.")
    parser.add_argument("--query", nargs="+", help="A sentence, or several that are each answered.")
    parser.add_argument("--image", help="A picture to search by.")
    parser.add_argument("--captions", help="A file with a caption a line, to be ranked for --image.")
    parser.add_argument("--top", type=int, help=f"Answers; by default {TOP}.")
    parser.add_argument(
        "--candidates", type=int, help="How many the cross encoders re-rank; 0 for none, by default 32."
    )
    parser.add_argument("--json", help="File to write the answers to as JSON.")
    parser.add_argument("--serve", action="store_true", help="Ask on a page in a browser, until Ctrl-C.")
    parser.add_argument("--host", help=f"The address of the page; by default {HOST}, which only this machine reaches.")
    parser.add_argument("--port", type=int, help=f"The page's port, by default {PORT}; 0 for any free one.")
    parser.add_argument("--batch_size", type=int, default=64, help="Pictures of a forward, over all devices.")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="Of matrix products.")
    parser.add_argument(
        "--approximate_above",
        type=int,
        default=APPROXIMATE_ABOVE,
        help=f"An approximate index is made of more pictures than this; by default {APPROXIMATE_ABOVE:,}.",
    )
    parser.add_argument("--vocabulary", help="The model's vocab.txt, where it came without one.")
    parser.add_argument("--weights", default="student", choices=["student", "teacher"], help="Which weights of a run.")
    return parser.parse_args(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """Brings the index up to date, prints what the questions find, writes the JSON file; returns the exit status."""
    return run(_work, argv, stopped="stopped; the same command goes on with the index")


def _work(arguments: Sequence[str]) -> None:
    asked = parsed(arguments)
    _check(asked)
    if asked.serve:
        _serve(asked)
        return
    captions = None if asked.captions is None else captions_of(user_path(asked.captions))
    model = _loaded(asked)
    candidates = _candidates(asked, model)
    for query in asked.query or ():
        checked_query(model, query)  # before the hours that an index may take
    if asked.image is not None:
        model.pixels(asked.image)
    document: dict[str, Any] = {"checkpoint": asked.checkpoint, "answers": []}
    answers = _captioned(asked, model, captions, candidates) if captions else _found(asked, model, candidates, document)
    for question, answer in answers:
        print(table(question, answer))
        document["answers"].append(described(question, answer, "caption" if captions else "path"))
    if asked.json:
        write_json(document, asked.json)


def _loaded(asked: argparse.Namespace) -> Ranker:
    return r2d2_jax.load(
        asked.checkpoint,
        vocabulary=asked.vocabulary,
        weights=asked.weights,
        batch_size=asked.batch_size,
        dtype=asked.dtype,
    )


def _check(asked: argparse.Namespace) -> None:
    """Refuses flags that contradict each other, before anything is loaded."""
    _check_page(asked)
    if asked.captions is not None:
        if asked.image is None:
            raise UserError("--captions is ranked for a picture; name one with --image")
        if asked.photos is not None or asked.query is not None:
            raise UserError("--captions is ranked for --image alone; leave out --photos and --query")
    elif asked.photos is None:
        raise UserError("--photos is not given; name a folder of photographs, or --image with --captions")
    if asked.query is not None and asked.image is not None:
        raise UserError("--query and --image are both given; ask one after the other")
    if asked.image is not None and asked.captions is None and asked.candidates:
        raise UserError(
            f"--candidates={asked.candidates}: the cross encoders compare pictures with texts, so nothing is re-ranked "
            "for a picture; leave --candidates out, or give --captions"
        )
    for name, least in (("top", 1), ("candidates", 0), ("approximate_above", 0)):
        value = getattr(asked, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}; expected {least} or more")
    if asked.no_update and asked.query is None and asked.image is None and not asked.serve:
        raise UserError("--no_update leaves nothing to do without --query, --image or --serve; give one of them")
    if asked.json is not None:
        check_json_path(asked.json)


def _check_page(asked: argparse.Namespace) -> None:
    """Refuses flags that mean nothing with the page, or nothing without."""
    if not asked.serve:
        if given := [name for name in ("host", "port") if getattr(asked, name) is not None]:
            raise UserError(f"--{given[0]} is of the page in a browser; give --serve, too")
        return
    if given := [name for name in ("query", "image", "captions", "top", "json") if getattr(asked, name) is not None]:
        raise UserError(f"--{given[0]} and --serve are both given; ask on the page, without --{given[0]}")
    if asked.port is not None and not 0 <= asked.port < 2**16:
        raise UserError(f"--port is {asked.port}; expected 0 to {2**16 - 1:,}")
    require(SERVER, "--serve", "search")


def _candidates(asked: argparse.Namespace, model: Ranker) -> int:
    if asked.candidates:
        model.check_matches()
    if asked.candidates is not None:
        return int(asked.candidates)
    if asked.query is None and asked.captions is None and not asked.serve:
        return 0
    if not model.matches:
        logger.info("the model has no cross encoders (PRD2): ranked by cosine alone")
        return 0
    return CANDIDATES


def _found(
    asked: argparse.Namespace, model: Ranker, candidates: int, document: dict[str, Any]
) -> Iterator[tuple[str, Answer]]:
    """Brings the index up to date; yields each question with its answer."""
    photos, folder = _folders(asked)
    document |= {"photos": shown(str(photos)), "index": shown(str(folder))}
    if update := _updated(asked, model):
        document["update"] = {
            "pictures": update.pictures,
            "new": update.changes.new,
            "changed": update.changes.changed,
            "removed": update.changes.removed,
            "encoded": update.encoded,
            "broken": update.broken,
            "seconds": update.seconds,
            "approximate_recall_at_10": update.recall,
        }
    if asked.query is None and asked.image is None:
        return
    index, top = _opened(asked, model), asked.top or TOP
    if asked.image is not None:
        yield asked.image, pictures_for_image(model, index, asked.image, top=top)
    for query in asked.query or ():
        yield query, pictures_for_text(model, index, query, top=top, candidates=candidates)


def _folders(asked: argparse.Namespace) -> tuple[Path, Path]:
    """Of the photographs, and of their index."""
    photos = user_path(asked.photos)
    return photos, user_path(asked.index) if asked.index else default_folder(photos)


def _updated(asked: argparse.Namespace, model: Ranker) -> Update | None:
    if asked.no_update:
        return None
    photos, folder = _folders(asked)
    update = bring_up_to_date(model, photos, folder, approximate_above=asked.approximate_above)
    print(update.described(folder))
    return update


def _opened(asked: argparse.Namespace, model: Ranker) -> IndexView:
    photos, folder = _folders(asked)
    index = IndexView(folder, photos, model.model)
    if not index.state().complete:
        print(f"the index is not complete: {index.state().pictures:,} different pictures so far")
    return index


def _serve(asked: argparse.Namespace) -> None:
    """Brings the index up to date, compiles, and answers on the page until it is stopped."""
    from r2d2_jax.search import server
    from r2d2_jax.search.desk import STEP, WARMING, Desk
    from r2d2_jax.search.guard import is_loopback

    host = asked.host if asked.host is not None else HOST
    with server.listening(host, PORT if asked.port is None else asked.port) as listener:
        model = _loaded(asked)
        candidates = _candidates(asked, model)
        checked_query(model, WARMING)  # a model without vocabulary is refused before the hours that an index may take
        _updated(asked, model)
        model = Ranker(model.model, batch_size=STEP)
        desk = Desk(model, _opened(asked, model), candidates)
        print("compiling what a question needs", flush=True)
        print(f"compiled in {desk.warm_up():,.0f} s")
        if not is_loopback(host):
            logger.warning("whoever reaches this port can search and see these photographs: there is no password")
        print(f"serving at {server.address(host, listener.getsockname()[1])}; Ctrl-C ends it", flush=True)
        server.serve(desk, host, listener)


def _captioned(
    asked: argparse.Namespace, model: Ranker, captions: list[str], candidates: int
) -> Iterator[tuple[str, Answer]]:
    top = asked.top or TOP
    yield asked.image, captions_for_image(model, asked.image, captions, top=top, candidates=candidates)


def captions_of(path: Path) -> list[str]:
    """The captions of a file, one a line; blank lines are none.

    Raises:
        UserError: it cannot be read, is no UTF-8, or holds no caption.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"--captions={path} cannot be read: {reason}; name a text file in UTF-8") from error
    captions = [line.strip() for line in lines if not is_blank(line)]
    if not captions:
        raise UserError(f"--captions={path} holds no caption; expected one a line")
    return captions


def table(question: str, answer: Answer) -> str:
    """The question, at most its beginning, then a line for each answer, and what it took."""
    rows = [HEADER]
    for rank, hit in enumerate(answer.hits, 1):
        match = "-" if hit.match is None else f"{hit.match:.4f}"
        copies = f"  (and {len(hit.copies)} copies)" if hit.copies else ""
        rows.append((str(rank), str(hit.rank_by_cosine), f"{hit.cosine:+.4f}", match, shown(hit.what) + copies))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    numbers = ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in rows)
    lines = [f"{start}  {row[-1]}".rstrip() for start, row in zip(numbers, rows, strict=True)]
    seconds = f"pre-ranking {answer.seconds['pre_ranking']:.3f} s"
    if answer.candidates:
        seconds += f", re-ranking of {answer.candidates} {answer.seconds['re_ranking']:.3f} s"
    asked = shown(question if len(question) <= LONGEST_QUESTION else f"{question[:LONGEST_QUESTION]}...")
    return "\n".join([asked, *answer.notes, *lines, seconds])


def described(question: str, answer: Answer, kind: str) -> dict[str, Any]:
    """The same as plain JSON values; `kind` is the key of what was found, "path" or "caption"."""
    hits = [
        {
            "rank": rank,
            kind: shown(hit.what),
            "cosine": hit.cosine,
            "match": hit.match,
            "rank_by_cosine": hit.rank_by_cosine,
            "copies": [shown(copy) for copy in hit.copies],
        }
        for rank, hit in enumerate(answer.hits, 1)
    ]
    return {
        "question": shown(question),
        "candidates": answer.candidates,
        "seconds": answer.seconds,
        "notes": list(answer.notes),
        "hits": hits,
    }


if __name__ == "__main__":
    sys.exit(main())
