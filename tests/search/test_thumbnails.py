"""Photographs as the page shows them: upright, bounded, without metadata, and the last ones in memory."""

import io

import numpy as np
import pytest
from PIL import Image
from small_images import save, shown, turned_by
from small_photos import photographs, small_ranker

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.search.index import bring_up_to_date
from r2d2_jax.search.thumbnails import SIDES, Thumbnails, thumbnail
from r2d2_jax.search.view import IndexView


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> IndexView:
    folder = tmp_path_factory.mktemp("thumbnails")
    model = small_ranker()
    bring_up_to_date(model, photographs(folder / "photos", 6), folder / "index")
    return IndexView(folder / "index", folder / "photos", model.model)


def digests(index: IndexView) -> list[bytes]:
    return [found.digest for found in index.nearest(np.ones(16, np.float32) / 4, 6)]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_upright_by_exif_and_without_it(orientation: int, kind: str) -> None:
    stored = np.zeros((48, 96, 3), np.uint8)
    stored[:24, :48] = 255
    encoded = save(Image.fromarray(stored), kind, exif=turned_by(orientation))
    with Image.open(io.BytesIO(thumbnail(encoded, 512))) as found:
        assert found.format == "JPEG"
        assert not found.getexif()
        wanted = shown(stored, orientation).astype(float)
        assert np.abs(np.asarray(found).astype(float) - wanted).mean() < 4


@pytest.mark.parametrize("size", [(2000, 1000), (1000, 2000), (3000, 30), (512, 512), (20, 10)])
def test_no_side_is_longer_and_none_becomes_longer(size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(thumbnail(save(Image.new("RGB", size, "red"), "JPEG"), 512))) as found:
        assert max(found.size) == min(512, max(size))
        assert found.width / found.height == pytest.approx(size[0] / size[1], rel=0.1)


def test_transparent_grey_and_many_bits() -> None:
    for mode in ("RGBA", "LA", "L", "1", "P", "CMYK", "I;16"):
        kind = "JPEG" if mode == "CMYK" else "PNG"
        assert Image.open(io.BytesIO(thumbnail(save(Image.new(mode, (30, 20)), kind), 16))).size == (16, 11)
    with pytest.raises(UnusableRecord):
        thumbnail(b"text", 16)


def test_the_last_ones_stay_in_memory(index: IndexView, monkeypatch: pytest.MonkeyPatch) -> None:
    known = digests(index)
    whole = Thumbnails(index)
    made = {digest: whole.jpeg(digest, "small") for digest in known}
    sizes = sorted((len(jpeg) for jpeg in made.values() if jpeg), reverse=True)
    thumbnails = Thumbnails(index, sum(sizes[:3]))
    asked: list[bytes] = []
    picture = index.picture
    monkeypatch.setattr(index, "picture", lambda digest: asked.append(digest) or picture(digest))
    for digest in [*known[:3], known[0], known[3], known[0]]:
        assert thumbnails.jpeg(digest, "small") == made[digest]
    assert asked == known[:4]
    thumbnails.jpeg(known[1], "small")  # was asked for longest ago, and made room for the fourth
    assert asked == [*known[:4], known[1]]
    thumbnails.jpeg(known[1], "large")
    assert asked[-2:] == [known[1]] * 2


def test_what_is_too_large_for_the_memory_is_shown_nevertheless(index: IndexView) -> None:
    thumbnails = Thumbnails(index, 10)
    for _ in range(2):
        assert thumbnails.jpeg(digests(index)[0], "small")


def test_a_file_with_another_content_is_not_shown(index: IndexView) -> None:
    digest = digests(index)[0]
    path = next(found.paths[0] for found in index.nearest(np.ones(16, np.float32) / 4, 1))
    before = path.read_bytes()
    path.write_bytes(save(Image.new("RGB", (30, 20))))
    assert [Thumbnails(index).jpeg(digest, size) for size in SIDES] == [None, None]
    path.unlink()
    assert Thumbnails(index).jpeg(digest, "small") is None
    path.write_bytes(before)
    assert Thumbnails(index).jpeg(digest, "small")
    assert Thumbnails(index).jpeg(bytes(16), "small") is None
