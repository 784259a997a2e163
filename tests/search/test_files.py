"""What counts as a photograph in a folder, and what is read of it."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_images import RAMP, shown, turned_by
from small_photos import picture

from r2d2_jax.search import files
from r2d2_jax.search.files import NEVER_READ, FoundFile, decoded, found_files, read_content


def names(folder: Path) -> list[str]:
    return [os.fsdecode(file.path) for file in found_files(folder)]


def test_pictures_of_every_format_below_a_folder_are_found(tmp_path: Path) -> None:
    wanted = ["a.JPG", "b.png", "c.webp", "d.gif", "e.bmp", "f.tiff", "g.avif", "h.heic", "x/y/z.jpeg"]
    for name in (*wanted, "notes.txt", "film.mov", "figure.eps", ".hidden.jpg", ".folder/a.jpg", "no_suffix"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "album.jpg").mkdir()
    assert names(tmp_path) == wanted


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    picture(tmp_path / "photos" / "z" / "1.png", 1)
    picture(tmp_path / "elsewhere" / "2.png", 2)
    (tmp_path / "photos" / "a_link").symlink_to(tmp_path / "photos" / "z")
    (tmp_path / "photos" / "other").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "z" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos" / "self")
    (tmp_path / "photos" / "3.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    assert sorted(names(tmp_path / "photos")) == ["3.png", "other/2.png", "z/1.png"]


def test_a_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    picture(tmp_path / "a.png", 0)
    picture(tmp_path / "closed" / "b.png", 0)
    listed = os.scandir

    def scandir(path: bytes):
        if path.endswith(b"closed"):
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(files.os, "scandir", scandir)
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == ["a.png"]
    assert "closed: Permission denied; it is left out" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_pictures_are_read_upright(tmp_path: Path, orientation: int) -> None:
    stored = np.repeat(np.repeat(RAMP[:4], 6, axis=0), 3, axis=1)  # 24 x 24
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=turned_by(orientation))
    Image.fromarray(shown(stored, orientation)).save(tmp_path / "upright.png")
    turned, upright = (
        decoded(read_content(tmp_path, FoundFile(name, 0, 0)), 24).pixels for name in (b"turned.png", b"upright.png")
    )
    np.testing.assert_array_equal(turned, upright)


def test_what_is_no_picture_has_a_problem(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("text")
    content = decoded(read_content(tmp_path, FoundFile(b"a.jpg", 4, 7)), 24)
    assert content.problem == "not an image: 4 bytes in no known format"
    assert content.digest is not None
    assert content.pixels is None


def test_what_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (file,) = found_files(tmp_path)
    content = decoded(read_content(tmp_path, file), 24)
    assert content.problem == "the file cannot be read: No such file or directory"
    assert content.file.size == NEVER_READ != file.size


def test_a_path_is_one_printable_line() -> None:
    assert files.shown("猫/a\nb\tc.jpg") == r"猫/a\nb\tc.jpg"
    assert files.shown(b"\xff.jpg") == r"\udcff.jpg"
