"""launch/evaluate.py: each bad input is one message, before anything long begins."""

import json
import re
from pathlib import Path

import pytest
from programs import called
from random_models import VOCABULARY, random_model
from raw_data import serialized, write_raw
from small_data import encode, example

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.launch.evaluate import main
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset


def labelled(count: int, classes: int, *texts: str) -> list[Example]:
    return [Example(encode(seed=n), texts, f"image{n}", label=n % classes) for n in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and sets of every form, by what they are."""
    root = tmp_path_factory.mktemp("refusals")
    write_model(random_model(layers=1, cross_layers=1, tokens=VOCABULARY), root / "r2d2")
    write_model(random_model(layers=1, cross_layers=0, tokens=VOCABULARY), root / "prd2")
    write_model(random_model(layers=1, cross_layers=1), root / "published.safetensors")
    (root / "other.txt").write_text("\n".join([*VOCABULARY[:-1], "猫"]) + "\n", encoding="utf-8")
    write_dataset(root / "captioned", {"test": map(example, range(3)), "validation": map(example, range(2))})
    write_dataset(root / "uncaptioned", {"test": [Example(encode(), (), "image")]})
    write_dataset(root / "pairs", {"test": labelled(4, 2, "红圆")}, class_names=("no match", "match"))
    write_dataset(root / "all_match", {"test": labelled(2, 1, "红圆")}, class_names=("no match", "match"))
    write_dataset(root / "classes", {"test": labelled(3, 3)}, class_names=("红", "蓝", "大"))
    write_dataset(root / "numbers", {"test": labelled(3, 3)}, class_names=("0", "1", "2"))
    write_dataset(root / "empty", {"test": [example(0)]})
    info = next((root / "empty").rglob("dataset_info.json"))
    description = json.loads(info.read_text(encoding="utf-8"))
    description["splits"][0]["shardLengths"] = ["0"]
    info.write_text(json.dumps(description), encoding="utf-8")
    write_raw(root / "broken", {"test": [[serialized(image=b"no image")]]})
    write_dataset(root / "other", {"test": map(example, range(2))})
    features = next((root / "other").rglob("features.json"))
    features.write_text(features.read_text(encoding="utf-8").replace('"captions"', '"words"'), encoding="utf-8")
    return root


REFUSALS = {
    "no checkpoint": ("--data=captioned", "--checkpoint is not given; --help lists the flags"),
    "the name of another program": (
        "--model=r2d2 --data=captioned",
        "--checkpoint is not given, and --model=r2d2 is no",
    ),
    "no model": ("--checkpoint=nothing --data=captioned", "nothing is no model; expected a published"),
    "an address": ("--checkpoint=s3://r2d2 --data=captioned", "s3://r2d2 is an address of s3://, which cannot"),
    "no data": ("--checkpoint=r2d2 --data=nothing", "data folder nothing does not exist"),
    "another split": (
        "--checkpoint=r2d2 --data=captioned --split=tset",
        "has no split 'tset'; it has test, validation",
    ),
    "an empty split": ("--checkpoint=r2d2 --data=empty", "split 'test' of .* has no records"),
    "no usable record": ("--checkpoint=r2d2 --data=broken", "none of the 1 records of split 'test' is usable"),
    "no partner": ("--checkpoint=r2d2 --data=uncaptioned", "none of the 1 images of split 'test' has a caption"),
    "another form": ("--checkpoint=r2d2 --data=other", "the dataset in .* has no captions; expected records"),
    "no such task": (
        "--checkpoint=r2d2 --data=captioned --task=ranking",
        "task is 'ranking'; expected one of retrieval",
    ),
    "no classes": (
        "--checkpoint=r2d2 --data=captioned --task=classification",
        "has no labels, and classification needs",
    ),
    "no names": ("--checkpoint=r2d2 --data=numbers --task=classification", "has labels without names, and classif"),
    "no labels": (
        "--checkpoint=r2d2 --data=captioned --task=matching",
        "has no labels, which say whether image and te",
    ),
    "classes, no pairs": ("--checkpoint=r2d2 --data=classes --task=matching", "has images of 3 classes, and matching"),
    "pairs, no classes": (
        "--checkpoint=r2d2 --data=pairs --task=classification",
        "say whether image and text match, and classification needs",
    ),
    "wrong pairs": (
        "--checkpoint=r2d2 --data=pairs --task=retrieval",
        "pairs that do not match, and to retrieval every",
    ),
    "no texts": ("--checkpoint=r2d2 --data=classes --task=retrieval", "have classes and no texts, so there is nothing"),
    "one class only": ("--checkpoint=r2d2 --data=all_match", "all 2 pairs of .* have the label 0, so there is no AUC"),
    "PRD2 re-ranks": ("--checkpoint=prd2 --data=captioned --rerank=4", "prd2 has no cross encoders .*; set it to 0"),
    "PRD2 matches": (
        "--checkpoint=prd2 --data=pairs",
        "prd2 has no cross encoders .*, which say whether image and text",
    ),
    "no vocabulary": (
        "--checkpoint=published.safetensors --data=captioned",
        "came without a vocabulary; name its vocab",
    ),
    "another vocabulary": (
        "--checkpoint=r2d2 --data=captioned --vocabulary=other.txt",
        "the model was trained with .*vocab.txt, and .*other.txt is another vocabulary",
    ),
    "a template without a place": ("--checkpoint=r2d2 --data=classes --templates=other.txt", "line 1: .* has no {}"),
    "no template": ("--checkpoint=r2d2 --data=classes --templates=照片", "'照片' is no UTF-8 file that can"),
    "a flag of another task": (
        "--checkpoint=r2d2 --data=classes --rerank=4",
        "--rerank is given, which only retrieval reads, and the task is classification; leave it out",
    ),
    "no threshold split": ("--checkpoint=r2d2 --data=pairs --threshold_split=dev", "has no split 'dev'; it has test"),
    "no direction": (
        "--checkpoint=r2d2 --data=captioned --directions=up",
        "--directions=up; expected i2t,t2i or one of them",
    ),
    "a negative rerank": ("--checkpoint=r2d2 --data=captioned --rerank=-1", "--rerank is -1; expected 0 or more"),
    "no batch": ("--checkpoint=r2d2 --data=captioned --batch_size=0", "--batch_size is 0; expected 1 or more"),
    "no memory": (
        "--checkpoint=r2d2 --data=captioned --memory_limit=much",
        "--memory_limit=much is no amount of memory",
    ),
    "JSON in a folder's place": (
        "--checkpoint=nothing --data=nothing --json=r2d2",
        "--json=r2d2 cannot be written: Is a",
    ),
    "teacher of a file": ("--checkpoint=r2d2 --data=captioned --weights=teacher", "weights is 'teacher', which only a"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_one_message(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, message = REFUSALS[name]
    monkeypatch.chdir(folder)
    done = called(main, *arguments.split())
    assert (done.returncode, done.stdout) == (2, "")
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert re.search(message, said[0]), done.stderr


def test_a_memory_limit_that_is_too_small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = called(main, "--checkpoint=r2d2", "--data=captioned", "--memory_limit=1MiB", "--batch_size=8")
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "memory" in done.stderr[done.stderr.index("error: ") :]


def test_prd2_is_not_re_ranked_unless_that_is_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    done = called(main, "--checkpoint=prd2", "--data=captioned", "--batch_size=8")
    assert done.returncode == 0, done.stderr
    assert "re-ranked" not in done.stdout
    assert "rerank 0" in done.stdout
