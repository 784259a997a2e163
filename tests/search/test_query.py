"""Both rankings against NumPy, while the index is written, and one message for whatever is wrong."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from random_models import VOCABULARY, random_model
from small_photos import BATCH, photographs, picture, small_ranker

from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.search import index as module
from r2d2_jax.search import query
from r2d2_jax.search.catalog import Catalog
from r2d2_jax.search.index import bring_up_to_date
from r2d2_jax.search.query import captions_for_image, checked_query, pictures_for_image, pictures_for_text
from r2d2_jax.search.view import IndexView

TEXT = "大红圆"
CAPTIONS = ["大红圆", "小蓝方", "圆", "方", "红方", "小圆"]


@pytest.fixture(scope="module")
def model() -> Ranker:
    return small_ranker()


@pytest.fixture(scope="module")
def prd2() -> Ranker:
    return small_ranker(cross_layers=0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photos")


@pytest.fixture
def index(model: Ranker, photos: Path, tmp_path: Path) -> IndexView:
    bring_up_to_date(model, photos, tmp_path / "index")
    return IndexView(tmp_path / "index", photos, model.model)


def oracle(cosine: np.ndarray, match: np.ndarray, candidates: int) -> list[int]:
    """Places in the order of the published sum among the best by cosine, the others behind them."""
    by_cosine = sorted(range(len(cosine)), key=lambda place: -cosine[place])
    first = sorted(by_cosine[:candidates], key=lambda place: -(cosine[place] + match[place]))
    return first + by_cosine[candidates:]


@pytest.mark.parametrize("candidates", [0, 1, 4, 9, 10, 50])
@pytest.mark.parametrize("above", [0, 100])
def test_pictures_for_a_sentence(model: Ranker, photos: Path, tmp_path: Path, candidates: int, above: int) -> None:
    if not above:
        pytest.importorskip("usearch")
    bring_up_to_date(model, photos, tmp_path / "index", approximate_above=above)
    index = IndexView(tmp_path / "index", photos, model.model)
    assert (index.state().rounded is None) == bool(above)
    paths = sorted(map(str, photos.rglob("*.png")))
    scores = model.score_all(paths, TEXT)
    cosine, match = scores.cosine[:, 0], scores.match[:, 0]
    answer = pictures_for_text(model, index, TEXT, top=10, candidates=candidates)
    wanted = oracle(cosine, match, candidates)
    assert [hit.what for hit in answer.hits] == [paths[place] for place in wanted]
    np.testing.assert_allclose([hit.cosine for hit in answer.hits], cosine[wanted], atol=1e-5)
    for rank, (hit, place) in enumerate(zip(answer.hits, wanted, strict=True)):
        if rank < candidates:
            assert hit.match == pytest.approx(match[place], abs=1e-5)
        else:
            assert hit.match is None
            assert hit.rank_by_cosine == rank + 1
    assert answer.candidates == min(candidates, 10)
    assert (answer.seconds["re_ranking"] > 0) == bool(candidates)


def test_the_first_of_a_longer_list(model: Ranker, index: IndexView) -> None:
    whole = pictures_for_text(model, index, TEXT, top=10, candidates=6)
    for top in (1, 3, 8):
        assert pictures_for_text(model, index, TEXT, top=top, candidates=6).hits == whole.hits[:top]


def test_pictures_like_a_picture(model: Ranker, photos: Path, index: IndexView) -> None:
    shutil.copy(photos / "04.png", photos / "copy.png")
    bring_up_to_date(model, photos, index.folder)
    answer = pictures_for_image(model, index, photos / "04.png", top=3)
    assert answer.hits[0].what == str(photos / "04.png")
    assert answer.hits[0].copies == (str(photos / "copy.png"),)
    assert answer.hits[0].cosine == pytest.approx(1, abs=1e-5)
    embed = model.encode_image(sorted(photos.rglob("[0-9]*.png"))).embed
    cosine = np.sort(embed @ model.encode_image(photos / "04.png").embed[0])[::-1]
    np.testing.assert_allclose([hit.cosine for hit in answer.hits], cosine[:3], atol=1e-5)


@pytest.mark.parametrize("candidates", [0, 2, 6, 20])
def test_captions_for_a_picture(model: Ranker, photos: Path, candidates: int) -> None:
    scores = model.score_all(photos / "00.png", CAPTIONS)
    answer = captions_for_image(model, photos / "00.png", CAPTIONS, top=6, candidates=candidates)
    wanted = oracle(scores.cosine[0], scores.match[0], candidates)
    assert [hit.what for hit in answer.hits] == [CAPTIONS[place] for place in wanted]
    np.testing.assert_allclose([hit.cosine for hit in answer.hits], scores.cosine[0, wanted], atol=1e-5)


def test_candidates_that_are_gone_are_left_out(
    model: Ranker, photos: Path, index: IndexView, caplog: pytest.LogCaptureFixture
) -> None:
    before = pictures_for_text(model, index, TEXT, top=10, candidates=10)
    Path(before.hits[0].what).unlink()
    Path(before.hits[1].what).write_text("text")
    after = pictures_for_text(model, index, TEXT, top=10, candidates=10)
    assert [hit.what for hit in after.hits] == [hit.what for hit in before.hits[2:]]
    assert caplog.text.count("is left out") == 2
    for path in photos.rglob("*.png"):
        path.unlink()
    assert pictures_for_text(model, index, TEXT, top=10, candidates=10).hits == ()


def test_a_reader_sees_what_was_committed_last(
    model: Ranker, photos: Path, index: IndexView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the index is brought up to date, and once rows have other numbers."""
    monkeypatch.setattr(module, "_REMOVED_ROWS", 0)
    for name in ("00.png", "02.png", "04.png", "06.png"):
        (photos / name).unlink()
    seen: list[tuple[int, bool]] = []

    def look() -> None:
        found = index.nearest(model.encode_text(TEXT).embed[0], 50)
        seen.append((len(found), index.state().complete))

    original = Catalog.remove_absent
    picture(photos / "new.png", 30)
    monkeypatch.setattr(Catalog, "remove_absent", lambda catalog: (look(), original(catalog))[1])
    look()
    bring_up_to_date(model, photos, index.folder)
    look()
    assert seen == [(10, True), (11, False), (7, True)]
    assert index.state().generation == 1


def test_a_generation_that_begins_during_a_question(
    model: Ranker, photos: Path, index: IndexView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMOVED_ROWS", 0)
    state = index.state()
    for name in ("00.png", "02.png", "04.png", "06.png"):
        (photos / name).unlink()
    called: list[int] = []

    def nearest_then_changed() -> object:
        if not called:
            called.append(1)
            bring_up_to_date(model, photos, index.folder)
            return state
        return IndexView.state(index)

    monkeypatch.setattr(index, "state", nearest_then_changed)
    found = index.nearest(model.encode_image(photos / "08.png").embed[0], 1)
    assert found[0].paths == (photos / "08.png",)


def test_what_a_sentence_loses_is_said(model: Ranker) -> None:
    assert checked_query(model, TEXT) == ()
    (note,) = checked_query(model, "红" * 10_000)
    assert note == "the query has 10,000 tokens, of which the model reads the first 5"
    (note,) = checked_query(model, "猫")
    assert note.startswith("the model's vocabulary has no token of the query")


def test_a_long_sentence_is_cut(model: Ranker, index: IndexView) -> None:
    long, short = (pictures_for_text(model, index, "红" * count, top=10, candidates=3) for count in (10_000, 5))
    assert long.hits == short.hits
    assert (len(long.notes), len(short.notes)) == (1, 0)


@pytest.mark.parametrize("text", ["", "  \n", "\u200b\ufeff", "\u3164"])
def test_a_sentence_that_says_nothing(model: Ranker, text: str) -> None:
    with pytest.raises(UserError, match="says nothing; expected a sentence"):
        checked_query(model, text)


def test_a_model_without_vocabulary(photos: Path) -> None:
    bare = Ranker(random_model(), batch_size=BATCH)
    with pytest.raises(UserError, match="the model came without a vocabulary"):
        checked_query(bare, TEXT)
    with pytest.raises(UserError, match="the model came without a vocabulary"):
        captions_for_image(bare, photos / "00.png", CAPTIONS, top=1, candidates=0)


def test_a_model_without_cross_encoders(prd2: Ranker, photos: Path, tmp_path: Path) -> None:
    bring_up_to_date(prd2, photos, tmp_path / "index")
    index = IndexView(tmp_path / "index", photos, prd2.model)
    assert pictures_for_text(prd2, index, TEXT, top=3, candidates=0).hits[0].match is None
    for ask in (
        lambda: pictures_for_text(prd2, index, TEXT, top=3, candidates=1),
        lambda: captions_for_image(prd2, photos / "00.png", CAPTIONS, top=3, candidates=1),
    ):
        with pytest.raises(UserError, match="the model has no cross encoders"):
            ask()


def test_no_captions(model: Ranker, photos: Path) -> None:
    with pytest.raises(UserError, match="there is no caption to rank"):
        captions_for_image(model, photos / "00.png", [], top=1, candidates=1)


def test_indexes_that_cannot_be_asked(model: Ranker, photos: Path, index: IndexView, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere holds no index; index the photographs first"):
        IndexView(tmp_path / "nowhere", photos, model.model)
    with pytest.raises(UserError, match="was made with another model"):
        IndexView(index.folder, photos, random_model(tokens=VOCABULARY, seed=1))
    with pytest.raises(UserError, match="is of .*photos, not of .*; name that folder as --photos"):
        IndexView(index.folder, tmp_path, model.model)
    (index.folder / "embeddings-0.f32").write_bytes(b"short")
    with pytest.raises(UserError, match="is damaged: rows are missing; delete that folder"):
        IndexView(index.folder, photos, model.model)
    (index.folder / "embeddings-0.f32").unlink()
    with pytest.raises(UserError, match="is damaged: its embeddings are missing; delete that folder"):
        IndexView(index.folder, photos, model.model)


def test_an_index_that_was_only_begun(
    model: Ranker, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_follow", None)
        with pytest.raises(TypeError):
            bring_up_to_date(model, photos, tmp_path / "index")
    with pytest.raises(UserError, match="has no picture yet; let the indexing go on, or start it again"):
        IndexView(tmp_path / "index", photos, model.model)
    (tmp_path / "empty").mkdir()
    Catalog(tmp_path / "empty", create=True).close()
    with pytest.raises(UserError, match="was never begun"):
        IndexView(tmp_path / "empty", photos, model.model)


def test_scores_are_the_published_sum() -> None:
    assert query.Hit("a", 0.25, 1, 0.5).score == 0.75
    assert query.Hit("a", 0.25, 1).score == 0.25
