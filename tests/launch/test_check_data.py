"""launch/check_data.py: its exit status is the verdict."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from programs import called
from small_data import encode, example

from r2d2_jax.launch.check_data import main
from r2d2_jax.preparation.writer import write_dataset

PROGRAM = Path(__file__).parents[2] / "launch" / "check_data.py"


def check_data(*arguments: str) -> subprocess.CompletedProcess[str]:
    return called(main, *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of four images, one of them in train and test, and a sound dataset."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "images").mkdir()
    for number in range(4):
        (folder / "images" / f"{number}.jpg").write_bytes(encode(seed=number % 3))
    lines = [{"image": f"{n}.jpg", "captions": ["一只狗"], "split": "test" if n == 3 else "train"} for n in range(4)]
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    write_dataset(folder / "data", {"train": map(example, range(4))})
    (folder / "data" / "file").touch()
    return folder


def test_a_dataset_to_train_on(folder: Path) -> None:
    done = check_data(f"--data={folder / 'data'}", f"--json={folder / 'check.json'}", "--processes=2")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"dataset {folder / 'data'}\n\n")
    document = json.loads((folder / "check.json").read_text(encoding="utf-8"))
    assert (document["status"], document["errors"], document["splits"]["train"]["usable"]) == (0, [], 4)


def test_a_corpus_with_an_error(folder: Path) -> None:
    done = check_data(
        f"--images={folder / 'images'}",
        f"--annotations={folder / 'captions.jsonl'}",
        "--processes=1",
        f"--json={folder / 'corpus.json'}",
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("corpus json_lines\n\n")
    assert "\nerror: test: 1 images are also in train by their bytes: " in done.stdout
    assert json.loads((folder / "corpus.json").read_text(encoding="utf-8"))["status"] == 1


def test_a_terminal_that_lacks_a_character_gets_the_report_and_the_file_has_it_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [{"image": f"{n}.jpg", "captions": ["一只狗😍"], "split": "train"} for n in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="gbk")  # as with LC_ALL=zh_CN.GBK
    monkeypatch.setattr(sys, "stdout", terminal)
    places = (f"--images={folder / 'images'}", f"--annotations={tmp_path / 'captions.jsonl'}")
    assert main([*places, f"--json={tmp_path / 'check.json'}", "--processes=1"]) in (0, 1)
    assert "一只狗?" in written.getvalue().decode("gbk")
    assert "一只狗😍" in (tmp_path / "check.json").read_text(encoding="utf-8")


def test_the_file_is_there_also_if_nothing_can_be_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert main([f"--data={folder / 'data'}", f"--json={folder / 'unprinted.json'}", "--processes=1"]) == 2
    assert "cannot write to standard output" in capsys.readouterr().err
    assert (folder / "unprinted.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=nowhere"], "error: data folder nowhere does not exist; expected NAME/1.0.0/dataset_info.json in it."),
        (
            ["--data=nowhere", "--images=photos"],
            "error: --data and --images are both given; expected a prepared dataset or a corpus, not both",
        ),
        (
            ["--data={data}", "--annotations=captions.jsonl"],
            "error: --data and --annotations are both given; expected a",
        ),
        (
            ["--data={data}", "--corpus=muge"],
            "error: --data and --corpus are both given; expected a prepared dataset or",
        ),
        (
            ["--data={data}", "--text_fields=title"],
            "error: --data and --text_fields are both given; expected a prepared",
        ),
        (
            ["--data={data}", "--json={data}"],
            "error: --json={data} cannot be written: Is a directory; name a file in a",
        ),
        (
            ["--data={data}", "--json={data}/file/report.json"],
            "error: --json={data}/file/report.json cannot be written: ",
        ),
        ([], "error: corpus json_lines needs --images and --annotations; set both"),
        (["nowhere"], "error: unknown argument 'nowhere'; every setting is a flag, like --NAME=VALUE"),
        (
            ["--data={data}", "--vocabulary=absent.txt"],
            "error: vocabulary absent.txt does not exist; expected a WordPiece",
        ),
        (["--data={data}", "--processes=0"], "error: --processes is 0; expected 1 or more"),
    ],
)
def test_bad_input(folder: Path, arguments: list[str], message: str) -> None:
    done = check_data(*(argument.format(data=folder / "data") for argument in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(message.format(data=folder / "data"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("processes", [1, 2])
def test_stopped(tmp_path: Path, number: signal.Signals, processes: int) -> None:
    """While it reads a split of 3,000 large images, after it has read one of one."""
    (tmp_path / "dev0.jpg").write_bytes(encode((4000, 4000)))
    names = [f"train{number}.jpg" for number in range(3000)]
    for name in names:
        (tmp_path / name).hardlink_to(tmp_path / "dev0.jpg")
    lines = [
        {"image": name, "captions": ["狗"], "split": "train" if name in names else "dev"}
        for name in ("dev0.jpg", *names)
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [
        sys.executable,
        str(PROGRAM),
        f"--images={tmp_path}",
        f"--annotations={tmp_path / 'captions.jsonl'}",
        f"--work={tmp_path / 'work'}",
        f"--processes={processes}",
    ]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "work").glob("*/*.figures")) and started.poll() is None:
        time.sleep(0.05)
    started.send_signal(number)
    printed, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert printed == ""
    assert errors.splitlines()[-1] == "stopped; there is no report, and the temporary files were removed"
    assert "Traceback" not in errors
    assert list((tmp_path / "work").iterdir()) == []
