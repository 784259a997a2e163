"""The page of published figures is read as it is written, and agrees with itself."""

import numpy as np
import pytest

from r2d2_jax.evaluation.published import COLUMNS, published_retrieval, table
from r2d2_jax.preparation.corpora import CORPORA

SETS = {row["set"].lower().replace("-", "_") for row in table("## Retrieval")}


def test_every_set_is_one_that_can_be_prepared() -> None:
    assert sorted(SETS) == ["aic_icc", "coco_cn", "flickr30k_cn", "flickr30k_cna", "icr", "iqr", "muge"]
    assert set(CORPORA) >= SETS


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_mean_is_that_of_its_recalls(name: str) -> None:
    """Where a row has them all; the sources round to one digit."""
    compared = 0
    for row in published_retrieval(name):
        recalls = [value for figure, value in row.figures.items() if figure != "mean"]
        assert all(0 < value <= 100 for value in row.figures.values())
        if len(recalls) == (3 if name == "muge" else 6):
            assert row.figures["mean"] == pytest.approx(np.mean(recalls), abs=0.06), row
            compared += 1
    assert compared >= 2


def test_rows_as_the_sources_give_them() -> None:
    rows = {(row.model, row.setting): row for row in published_retrieval("flickr30k_cn")}
    ours = rows["R2D2 ViT-L", "zero-shot"]
    recalls = (77.6, 96.7, 98.9, 60.9, 86.8, 92.7, 85.6)
    assert ours.figures == dict(zip(COLUMNS.values(), recalls, strict=True))
    assert "2312.14238" in ours.source
    assert rows["Wukong ViT-L", "fine-tuned"].figures == {"mean": 93.4}
    assert rows["Chinese-CLIP H/14", "fine-tuned"].figures == {"i2t_r1": 95.3, "t2i_r1": 83.8}
    wenlan = [row.figures["mean"] for row in published_retrieval("aic_icc") if "WenLan" in row.model]
    assert wenlan == [58.7]
    assert {row.split for row in published_retrieval("icr") if row.model.startswith("R2D2")} == {"validation"}


def test_sets_with_one_test_split_stand_together() -> None:
    """And say on what was trained where that is the other set."""
    for name, other in (("flickr30k_cn", "Flickr30k-CNA"), ("flickr30k_cna", "Flickr30k-CN")):
        own, others = (
            [row for row in published_retrieval(name) if (row.setting == f"on {other}") == of_other]
            for of_other in (False, True)
        )
        assert {row.model for row in own} >= {"R2D2 ViT-B", "R2D2 ViT-L"} <= {row.model for row in others}
        assert "R2D2 ViT-L" in {row.model for row in own if row.setting == "zero-shot"}
    assert {row.setting for row in published_retrieval("coco_cn")} == {"zero-shot", "fine-tuned"}


def test_a_set_of_ones_own_has_none() -> None:
    assert published_retrieval("json_lines") == []
