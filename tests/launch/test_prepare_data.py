"""launch/prepare_data.py prints a table, or one message and exit status 2."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from programs import called
from small_data import encode

from r2d2_jax.data.records import RecordSource
from r2d2_jax.launch import prepare_data
from r2d2_jax.preparation.writer import SplitSummary

LAUNCHER = Path(__file__).resolve().parents[2] / "launch" / "prepare_data.py"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder with five images and their captions."""
    (tmp_path / "images").mkdir()
    for number in range(5):
        (tmp_path / "images" / f"{number}.jpg").write_bytes(encode(seed=number))
    splits = ["train"] * 4 + ["val"]
    lines = [{"image": f"{n}.jpg", "captions": ["一只狗"], "split": split} for n, split in enumerate(splits)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def run(*arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return called(prepare_data.main, *arguments, *(f"--{flag}={value}" for flag, value in settings.items()))


def places(corpus: Path) -> dict[str, str]:
    return {
        flag: str(corpus / name)
        for flag, name in (("images", "images"), ("annotations", "captions.jsonl"), ("output", "out"))
    }


def test_as_a_program_from_anywhere(corpus: Path, vocabulary: Path) -> None:
    arguments = ["--images=images", "--annotations=captions.jsonl", f"--vocabulary={vocabulary}", "--output=out"]
    done = subprocess.run([sys.executable, LAUNCHER, *arguments], cwd=corpus, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [row.split() for row in done.stdout.splitlines()]
    assert [row[:4] for row in rows] == [
        ["split", "records", "captions", "skipped"],
        ["train", "4", "4", "0"],
        ["validation", "1", "1", "0"],
    ]
    assert len(RecordSource(corpus / "out", "train")) == 4
    assert (corpus / "out" / "vocab.txt").is_file()


def test_bad_input_is_one_message_and_status_2(corpus: Path) -> None:
    (corpus / "images" / "3.jpg").unlink()
    done = run(**places(corpus))
    assert (done.returncode, done.stdout) == (2, "")
    assert "\nerror: 1 of the 5 entries are unusable so far, more than --max_broken_share=0.01 " in done.stderr
    assert "images/3.jpg cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


def test_share_flag(corpus: Path) -> None:
    (corpus / "images" / "3.jpg").unlink()
    assert "captions.jsonl:4: image" in run(**places(corpus), max_broken_share=0.5).stdout


def test_damaged_images_are_left_out_by_a_flag(corpus: Path) -> None:
    image = corpus / "images" / "3.jpg"
    sound = encode((600, 400), seed=3)
    image.write_bytes(sound[: len(sound) // 2] + bytes(400) + sound[len(sound) // 2 + 400 :])
    refused = run("--refuse_damaged", **places(corpus), max_broken_share=0.5)
    assert "image 3.jpg: the image is damaged, although it can be decoded: Corrupt JPEG data: " in refused.stdout
    assert run(**places(corpus) | {"output": str(corpus / "all")}).stdout.split()[6:10] == ["train", "4", "4", "0"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--output is not set; name the folder that is to hold the dataset"),
        ({"output": "out"}, "corpus json_lines needs --images and --annotations; set both"),
        ({"output": "out", "corpus": "flickr"}, "--corpus=flickr is not known; expected one of json_lines"),
        ({"output": "out", "images": "images"}, "corpus json_lines needs --images and --annotations; set both"),
    ],
)
def test_missing_flags(settings: dict, message: str) -> None:
    done = run(**settings)
    assert done.returncode == 2
    assert message in done.stderr


def test_the_demonstration_has_no_use_for_a_corpus() -> None:
    done = run("--demo", "--output=out", "--shards=3", "--corpus=muge")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: --demo draws its own data and has no use for --corpus, --shards; leave that out"
    )


def test_stray_argument() -> None:
    done = run("out")
    assert done.returncode == 2
    assert "unknown argument 'out'; every setting is a flag" in done.stderr


def test_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def write_demonstration(*arguments: object) -> list[SplitSummary]:
        asked.append(arguments)
        return [SplitSummary("train", 60, 120, 4000, 1)]

    monkeypatch.setattr(prepare_data, "write_demonstration", write_demonstration)
    printed = run(demo=True, output="demo-folder", seed=7).stdout
    assert asked == [("demo-folder", 7)]
    assert printed.split("\n")[1].split() == ["train", "60", "120", "0", "4,000", "1"]
