"""What a report computes with a model: equal to the same asked of it directly; what there is not is left out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_models import VOCABULARY, random_model
from small_reports import EVIL, FOILS, IMAGES, write_report_dataset

from r2d2_jax.evaluation.retrieval import RetrievalSettings
from r2d2_jax.inference import Ranker
from r2d2_jax.models.store import Model
from r2d2_jax.report.findings import Findings, find
from r2d2_jax.report.subject import Asked


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(layers=1, cross_layers=2, tokens=VOCABULARY)


def asked(data: Path, **changes: Any) -> Asked:
    settings = RetrievalSettings(rerank=4)
    return dataclasses.replace(Asked(str(data), "validation", "swapped", 0, settings, 8, "float32"), **changes)


@pytest.fixture(scope="module")
def findings(data: Path, model: Model) -> Findings:
    return find(model, asked(data), most=10**6)


def test_ranks_are_those_of_the_embeddings_and_match_probabilities(findings: Findings, model: Model) -> None:
    split = findings.split
    assert split is not None
    scores = Ranker(model).score_all([split.picture(image) for image in range(IMAGES)], split.captions)
    assert scores.match is not None
    right = np.zeros(scores.cosine.shape, bool)
    right[tuple(split.pairs.T)] = True
    for direction, answers in findings.answers.items():
        cosine, match, is_right = (
            each if direction == "i2t" else each.T for each in (scores.cosine, scores.match, right)
        )
        for row, query in enumerate(answers.queries):
            order = np.argsort(-cosine[query])
            assert is_right[query][order].argmax() == answers.dual.ranks[row]
            again = [*order[:4][np.argsort(-(cosine + match)[query][order[:4]])], *order[4:]]
            assert answers.reranked is not None
            assert is_right[query][again].argmax() == answers.reranked.ranks[row]
            assert answers.reranked.best[row].tolist() == again[:5]
            np.testing.assert_allclose(answers.reranked.match[row][:4], match[query][again[:4]], atol=1e-5)


def test_swapped_pairs_have_both_scores(findings: Findings, model: Model) -> None:
    split, foils = findings.foil_split, findings.foils
    assert split is not None
    assert foils is not None
    assert foils.match is not None
    assert foils.cosine.shape == foils.match.shape == (FOILS, 2)
    ranker = Ranker(model)
    for image in range(FOILS):
        captions = [split.captions[text] for text in split.pairs[split.pairs[:, 0] == image, 1]]
        scores = ranker.score_all(split.picture(image), captions)
        np.testing.assert_allclose(scores.cosine[0], foils.cosine[image], atol=1e-5)
        np.testing.assert_allclose(scores.match[0], foils.match[image], atol=1e-5)


def test_heat_maps_are_of_captions_of_the_split(findings: Findings) -> None:
    assert findings.split is not None
    assert findings.maps
    for found in findings.maps:
        assert found.caption in findings.split.captions
        assert all(thing in found.caption for thing in found.things)
        assert found.png.startswith(b"\x89PNG")
    assert findings.maps[0].caption in (EVIL, "大红圆")
    assert findings.missing == ()


def test_a_model_without_cross_encoders_has_one_stage_and_no_heat_maps(data: Path) -> None:
    prd2 = random_model(layers=1, cross_layers=0, tokens=VOCABULARY)
    found = find(prd2, asked(data, settings=RetrievalSettings(directions=("t2i",))), most=7)
    assert found.answers.keys() == {"t2i"}
    assert found.answers["t2i"].reranked is None
    assert (len(found.answers["t2i"].queries), found.answers["t2i"].total) == (7, 2 * IMAGES)
    assert found.foils is not None
    assert found.foils.match is None
    assert found.maps == ()


def test_what_is_not_there_is_said(data: Path, model: Model) -> None:
    none = find(model, asked(data / "gone", foil_split=""), most=1)
    assert (none.split, none.foils, none.answers) == (None, None, {})
    assert len(none.missing) == 1
    assert none.missing[0].startswith("Nothing of the split validation is shown. data folder ")
    odd = find(model, asked(data, split="", foil_split="nothing"), most=1)
    assert len(odd.missing) == 1
    assert "Nothing of the split nothing is shown." in odd.missing[0]
    silent = find(dataclasses.replace(model, vocabulary=None), asked(data), most=1)
    assert silent.missing == ("The model came without a vocabulary, so no answers are shown.",)
