"""search.py: index and answers as a table and as JSON, and one message for whatever is wrong."""

import json
import re
from pathlib import Path

import pytest
from programs import ROOT, called
from random_models import VOCABULARY, random_model
from small_photos import photographs, picture

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.launch import search
from r2d2_jax.lock import held


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another, one without cross encoders, and one without vocabulary."""
    path = tmp_path_factory.mktemp("models")
    write_model(random_model(tokens=VOCABULARY), path / "model")
    write_model(random_model(tokens=VOCABULARY, seed=1), path / "other")
    write_model(random_model(cross_layers=0, tokens=VOCABULARY), path / "prd2")
    write_model(random_model(), path / "no_vocabulary")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, one of them broken, a file of captions, and folders without a picture."""
    path = tmp_path_factory.mktemp("search")
    photographs(path / "photos", 6)
    picture(path / "photos" / "猫\n.png", 20)
    (path / "photos" / "broken.jpg").write_text("text")
    (path / "captions.txt").write_text("大红圆\n\n小蓝方\n圆\n", encoding="utf-8")
    (path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (path / "gbk.txt").write_bytes("红圆".encode("gbk"))
    (path / "empty").mkdir()
    (path / "unreadable").mkdir()
    (path / "unreadable" / "a.jpg").write_text("text")
    return path


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def asked(models: Path, folder: Path, *flags: str, model: str = "model", photos: str = "photos"):
    where = [f"--photos={folder / photos}"] if photos else []
    return called(search.main, f"--checkpoint={models / model}", *where, *flags)


def test_table_and_json_say_the_same(models: Path, folder: Path, tmp_path: Path) -> None:
    flags = ["--query", "大红圆", "小蓝方", "--top=4", "--candidates=3", f"--json={tmp_path / 'a.json'}"]
    done = asked(models, folder, *flags)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    lines = done.stdout.splitlines()
    assert lines[0].startswith("7 pictures in the index: 8 files new, 0 changed, 0 removed; 7 pictures encoded in ")
    assert lines[1] == f"1 files are broken, listed in {Path(document['index']) / 'broken.txt'}"
    assert document["update"].items() >= {"pictures": 7, "new": 8, "encoded": 7, "broken": 1}.items()
    assert [answer["question"] for answer in document["answers"]] == ["大红圆", "小蓝方"]
    for answer, table in zip(document["answers"], (lines[2:9], lines[9:16]), strict=True):
        assert table[0] == answer["question"]
        assert table[1] == "rank  by cosine   cosine   match"
        assert [hit["rank"] for hit in answer["hits"]] == [1, 2, 3, 4]
        for hit, line in zip(answer["hits"], table[2:6], strict=True):
            match = "-" if hit["match"] is None else f"{hit['match']:.4f}"
            cells = [str(hit["rank"]), str(hit["rank_by_cosine"]), f"{hit['cosine']:+.4f}", match]
            assert line.split(None, 4) == [*cells, hit["path"]]
        assert [hit["match"] is None for hit in answer["hits"]] == [False, False, False, True]
        assert table[6].startswith("pre-ranking ")
        assert ", re-ranking of 3 " in table[6]
        assert set(answer["seconds"]) == {"pre_ranking", "re_ranking"}


def test_the_index_alone_and_then_as_it_is(models: Path, folder: Path, tmp_path: Path) -> None:
    index = f"--index={tmp_path / 'index'}"
    first = asked(models, folder, index)
    assert first.returncode == 0
    assert "rank" not in first.stdout
    done = asked(models, folder, index, "--no_update", f"--image={folder / 'photos' / '00.png'}", "--top=7")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[2].split(None, 4)[1:] == ["1", "+1.0000", "-", str(folder / "photos" / "00.png")]
    assert any(line.endswith(r"猫\n.png") for line in lines)


def test_others_may_search_while_the_index_is_written(models: Path, folder: Path, tmp_path: Path) -> None:
    index = f"--index={tmp_path / 'index'}"
    assert asked(models, folder, index).returncode == 0
    with held(tmp_path / "index", "a test", "--index"):
        assert asked(models, folder, index, "--no_update", "--query=圆").returncode == 0
        done = asked(models, folder, index, "--query=圆")
    assert done.returncode == 2
    assert "error: another indexing (--no_update searches meanwhile) is at work in " in done.stderr


def test_captions_of_a_picture(models: Path, folder: Path, tmp_path: Path) -> None:
    image, captions = f"--image={folder / 'photos' / '00.png'}", f"--captions={folder / 'captions.txt'}"
    done = asked(models, folder, image, captions, f"--json={tmp_path / 'a.json'}", photos="")
    assert done.returncode == 0, done.stderr
    (answer,) = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["answers"]
    assert sorted(hit["caption"] for hit in answer["hits"]) == sorted(["大红圆", "小蓝方", "圆"])
    assert answer["candidates"] == 3


def test_without_cross_encoders_pre_ranking_alone(models: Path, folder: Path) -> None:
    done = asked(models, folder, "--query=圆", model="prd2")
    assert done.returncode == 0
    assert done.stderr.count("the model has no cross encoders (PRD2): ranked by cosine alone") == 1
    assert ", re-ranking" not in done.stdout
    assert asked(models, folder, "--query=圆", "--candidates=0", model="prd2").stderr == ""


def test_long_queries_are_cut(models: Path, folder: Path) -> None:
    done = asked(models, folder, f"--query={'红' * 10_000}")
    assert done.returncode == 0
    assert "the query has 10,000 tokens, of which the model reads the first 5" in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 300


def test_an_index_of_another_model(models: Path, folder: Path, tmp_path: Path) -> None:
    assert asked(models, folder, f"--index={tmp_path / 'i'}").returncode == 0
    done = asked(models, folder, f"--index={tmp_path / 'i'}", model="other")
    assert done.returncode == 2
    assert "was made with another model; name that one, choose another --index, or delete that folder" in done.stderr


@pytest.mark.parametrize(
    ("flags", "changed", "message"),
    [
        ([], {"photos": ""}, "--photos is not given; name a folder of photographs, or --image with --captions"),
        ([], {"photos": "nowhere"}, "nowhere cannot be listed: No such file or directory; name a folder"),
        ([], {"photos": "captions.txt"}, "captions.txt cannot be listed: Not a directory"),
        ([], {"photos": "empty"}, "empty is empty: neither there nor below is a file"),
        ([], {"photos": "unreadable"}, "none of the 1 files in --photos="),
        ([], {"model": "nowhere"}, "is no model; expected"),
        (["--query="], {}, "the query '' says nothing; expected a sentence"),
        (["--query", "圆", " "], {}, "the query ' ' says nothing; expected a sentence"),
        (["--query=圆"], {"model": "no_vocabulary"}, "the model came without a vocabulary"),
        (["--query=圆", "--candidates=3"], {"model": "prd2"}, "the model has no cross encoders (PRD2)"),
        (["--query=圆", "--candidates=-1"], {}, "--candidates is -1; expected 0 or more"),
        (["--query=圆", "--top=0"], {}, "--top is 0; expected 1 or more"),
        (["--approximate_above=-1"], {}, "--approximate_above is -1; expected 0 or more"),
        (["--query=圆", "--image=a.jpg"], {}, "--query and --image are both given; ask one after the other"),
        (["--image=a.jpg", "--candidates=3"], {}, "so nothing is re-ranked for a picture; leave --candidates out"),
        (["--image=nowhere.jpg"], {}, "image nowhere.jpg: [Errno 2] No such file or directory"),
        (["--captions=a.txt"], {}, "--captions is ranked for a picture; name one with --image"),
        (["--captions=a.txt", "--image=a.jpg"], {}, "--captions is ranked for --image alone; leave out --photos"),
        (["--no_update"], {}, "--no_update leaves nothing to do without --query, --image or --serve; give one"),
        (["--no_update", "--query=圆"], {}, "holds no index; index the photographs first, without --no_update"),
        (["--json=/dev/null/a.json"], {}, "--json=/dev/null/a.json cannot be written"),
        (["--batch_size=0"], {}, "batch_size is 0; expected 1 or more"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    models: Path, folder: Path, flags: list[str], changed: dict[str, str], message: str
) -> None:
    done = asked(models, folder, *flags, **changed)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "nowhere.txt cannot be read: No such file or directory; name a text file in UTF-8"),
        ("gbk.txt", "gbk.txt cannot be read: it is not UTF-8; name a text file in UTF-8"),
        ("blank.txt", "blank.txt holds no caption; expected one a line"),
    ],
)
def test_captions_that_are_none(models: Path, folder: Path, name: str, message: str) -> None:
    done = asked(models, folder, f"--image={folder / 'photos' / '00.png'}", f"--captions={folder / name}", photos="")
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr


def test_the_page_names_flags_that_exist_and_its_code_runs(
    models: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    source = (ROOT / "launch" / "search.py").read_text(encoding="utf-8")
    own = re.sub(r"--(?:pictures|part|help)\b", "", page)  # of the benchmark, or of every program
    assert [flag for flag in set(re.findall(r"--[a-z_]+", own)) if f'"{flag}"' not in source] == []
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(models / "model")
    (tmp_path / "photos").symlink_to(folder / "photos")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("7 pictures in the index")
    assert len(printed) == 2 + 7 + 1  # one name has a line break
