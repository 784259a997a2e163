"""An index follows its folder, whatever happens there and whenever the process is killed."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_models import VOCABULARY, random_model
from small_photos import BATCH, assert_holds, indexed, photographs, picture, small_ranker

from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.lock import held
from r2d2_jax.search import index as module
from r2d2_jax.search.catalog import CATALOG, Catalog
from r2d2_jax.search.index import BROKEN, Update, bring_up_to_date, default_folder
from r2d2_jax.search.store import RowFile

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model() -> Ranker:
    return small_ranker()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return photographs(tmp_path / "photos")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "index"


def listed(photos: Path) -> list[str]:
    return sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))


def counts(update: Update) -> tuple[int, int, int, int, int]:
    """Files new, changed and removed; pictures encoded; broken files."""
    changes = update.changes
    return changes.new, changes.changed, changes.removed, update.encoded, update.broken


def test_every_picture_is_there_and_a_second_call_reads_none(
    model: Ranker, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert counts(bring_up_to_date(model, photos, folder)) == (10, 0, 0, 10, 0)
    assert_holds(model, photos, folder, listed(photos))
    read: list[object] = []
    monkeypatch.setattr(module, "read_content", lambda *file: read.append(file))
    assert counts(bring_up_to_date(model, photos, folder)) == (0, 0, 0, 0, 0)
    assert read == []
    assert not (folder / BROKEN).exists()


def test_added_changed_moved_and_removed(model: Ranker, photos: Path, folder: Path) -> None:
    bring_up_to_date(model, photos, folder)
    picture(photos / "new.png", 100)
    picture(photos / "00.png", 101)
    (photos / "02.png").rename(photos / "moved.png")
    (photos / "below" / "01.png").unlink()
    shutil.copy(photos / "04.png", photos / "copy.png")
    os.utime(photos / "06.png", ns=(1, 1))  # the same content at another time
    update = bring_up_to_date(model, photos, folder)
    assert counts(update) == (3, 2, 2, 2, 0)
    assert update.pictures == 11
    assert_holds(model, photos, folder, listed(photos))


def test_a_picture_that_returns_is_not_encoded_again(model: Ranker, photos: Path, folder: Path) -> None:
    bring_up_to_date(model, photos, folder)
    (photos / "00.png").rename(photos.parent / "00.png")
    bring_up_to_date(model, photos, folder)
    assert "00.png" not in indexed(folder)
    (photos.parent / "00.png").rename(photos / "00.png")
    assert counts(bring_up_to_date(model, photos, folder)) == (1, 0, 0, 0, 0)
    assert_holds(model, photos, folder, listed(photos))


def test_equal_pictures_in_one_folder_are_encoded_once(model: Ranker, photos: Path, folder: Path) -> None:
    for number in range(9):
        shutil.copy(photos / "00.png", photos / f"copy{number}.png")
    assert counts(bring_up_to_date(model, photos, folder)) == (19, 0, 0, 10, 0)
    assert_holds(model, photos, folder, listed(photos))


def test_many_removed_pictures_are_left_out_of_the_file(
    model: Ranker, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REMOVED_ROWS", 3)
    bring_up_to_date(model, photos, folder)
    for name in listed(photos)[::2]:
        (photos / name).unlink()
    bring_up_to_date(model, photos, folder)
    assert [path.name for path in folder.glob("embeddings-*")] == ["embeddings-1.f32"]
    with Catalog(folder) as catalog:
        assert catalog.rows() == 5
    assert_holds(model, photos, folder, listed(photos))
    picture(photos / "new.png", 50)
    assert counts(bring_up_to_date(model, photos, folder)) == (1, 0, 0, 1, 0)
    assert_holds(model, photos, folder, listed(photos))


def test_broken_pictures_are_listed_and_read_again_only_when_they_change(
    model: Ranker, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = listed(photos)
    (photos / "text.jpg").write_text("no picture")
    (photos / "cut\n.png").write_bytes((photos / "00.png").read_bytes()[:200])
    (photos / "link.jpg").symlink_to(photos / "nowhere")
    assert counts(bring_up_to_date(model, photos, folder)) == (13, 0, 0, 10, 3)
    lines = (folder / BROKEN).read_text(encoding="utf-8").splitlines()
    assert [line.split("\t")[0] for line in lines] == [r"cut\n.png", "link.jpg", "text.jpg"]
    assert lines[2].endswith("not an image: 10 bytes in no known format")
    read: list[bytes] = []
    original = module.read_content
    monkeypatch.setattr(module, "read_content", lambda root, file: read.append(file.path) or original(root, file))
    bring_up_to_date(model, photos, folder)
    assert read == [b"link.jpg"]  # what could not be read is tried again
    Image.new("RGB", (9, 9)).save(photos / "nowhere", "PNG")
    (photos / "cut\n.png").write_bytes((photos / "00.png").read_bytes())
    assert counts(bring_up_to_date(model, photos, folder)) == (0, 2, 0, 1, 1)
    assert_holds(model, photos, folder, sorted([*names, "cut\n.png", "link.jpg"]))


def test_names_of_any_bytes(model: Ranker, photos: Path, folder: Path) -> None:
    names = ["猫\n.png", "a'b\".png", os.fsdecode(b"\xff\xfe.png")]
    for seed, name in enumerate(names, 80):
        picture(photos / "图" / name, seed)
    assert bring_up_to_date(model, photos, folder).encoded == 13
    assert_holds(model, photos, folder, listed(photos))


class Killed(BaseException):
    """What no handler of errors catches."""


@contextlib.contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, call: int, *, after: bool) -> Iterator[None]:
    """Raises in a call of a method, from 0, before it has done anything or after all."""
    original: Callable[..., object] = getattr(owner, name)
    calls = iter(range(1000))

    def killing(*arguments: object) -> object:
        number = next(calls)
        if number == call and not after:
            raise Killed
        result = original(*arguments)
        if number == call:
            raise Killed
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killing)
        with pytest.raises(Killed):
            yield


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (RowFile, "write", 0),
        (RowFile, "write", 1),
        (RowFile, "write", 2),
        (Catalog, "add", 0),
        (Catalog, "add", 2),
        (Catalog, "remove_absent", 0),
        (Catalog, "compare", 0),
        (RowFile, "write_chosen", 0),
        (Catalog, "renumber", 0),
    ],
)
def test_killed_anywhere_it_goes_on(
    model: Ranker,
    photos: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    call: int,
    after: bool,
) -> None:
    monkeypatch.setattr(module, "_REMOVED_ROWS", 0)
    picture(photos / "old.png", 70)
    picture(photos / "older.png", 71)
    picture(photos / "oldest.png", 72)
    early = photos.parent / "later"
    photos.rename(early)
    photos.mkdir()
    for old in ("old.png", "older.png", "oldest.png"):
        (early / old).rename(photos / old)
    bring_up_to_date(model, photos, folder)
    for path in early.iterdir():
        path.rename(photos / path.name)
    for old in ("old.png", "older.png", "oldest.png"):
        (photos / old).unlink()
    with killed_at(monkeypatch, owner, name, call, after=after):
        bring_up_to_date(model, photos, folder)
    update = bring_up_to_date(model, photos, folder)
    assert update.pictures == 10
    assert_holds(model, photos, folder, listed(photos))
    with Catalog(folder) as catalog:
        assert catalog.rows() == 10  # the three that are gone are left out, and nobody has a second row
        assert catalog.fact("complete")
    assert {path.name for path in folder.iterdir()} == {CATALOG, "embeddings-1.f32"}


def test_what_fails_within_a_transaction_leaves_the_state_before(model: Ranker, photos: Path, folder: Path) -> None:
    def fail(catalog: Catalog) -> None:
        with catalog.transaction():
            catalog._connection.execute("DELETE FROM files")
            raise Killed

    bring_up_to_date(model, photos, folder)
    before = indexed(folder)
    with Catalog(folder) as catalog:
        with pytest.raises(Killed):
            fail(catalog)
        assert catalog.pictures() == 10
    assert before.keys() == indexed(folder).keys()


KILLING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import small_photos
from r2d2_jax.search.catalog import Catalog
from r2d2_jax.search import index
renumbered = Catalog.set_fact
def set_fact(self, name, value):
    if name == "version" and self.rows() >= 8:
        os.kill(os.getpid(), signal.SIGKILL)  # within the transaction of the second batch
    renumbered(self, name, value)
Catalog.set_fact = set_fact
index.bring_up_to_date(small_photos.small_ranker(), Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_sigkill_within_a_transaction(model: Ranker, photos: Path, folder: Path) -> None:
    command = [sys.executable, "-c", KILLING, str(ROOT / "tests"), str(photos), str(folder)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(indexed(folder)) == BATCH
    assert bring_up_to_date(model, photos, folder).encoded == 10 - BATCH
    assert_holds(model, photos, folder, listed(photos))


def test_the_approximate_index_follows(model: Ranker, photos: Path, folder: Path) -> None:
    pytest.importorskip("usearch")
    update = bring_up_to_date(model, photos, folder, approximate_above=5)
    assert update.recall is not None
    assert update.recall >= 0.95
    assert "approximate index: recall at 10 is " in update.described(folder)
    picture(photos / "new.png", 100)
    bring_up_to_date(model, photos, folder, approximate_above=5)
    with Catalog(folder) as catalog:
        fact = catalog.fact("rounded")
        assert fact["rows"] == 11
        codes = module.rounded_file(folder, 0, model.config.embed_size).rows(11)
        embeddings = module.embeddings_file(folder, 0, model.config.embed_size).rows(11)
        np.testing.assert_array_equal(codes, module.rounding_of(fact).rounded(embeddings))
    assert bring_up_to_date(model, photos, folder, approximate_above=11).recall is None


def test_another_model_is_refused(model: Ranker, photos: Path, folder: Path) -> None:
    bring_up_to_date(model, photos, folder)
    with pytest.raises(UserError, match="made with another model; .*What differs: weights, sizes$"):
        bring_up_to_date(small_ranker(layers=2), photos, folder)


def test_an_index_that_says_how_the_model_was_trained_is_of_the_same_model(
    model: Ranker, photos: Path, folder: Path
) -> None:
    bring_up_to_date(model, photos, folder)
    with Catalog(folder) as catalog, catalog.transaction():
        before = catalog.fact("model")
        sizes = before["sizes"] | {"remat": True, "remat_keeps": "products"}
        catalog.set_fact("model", before | {"sizes": sizes})
    assert bring_up_to_date(model, photos, folder).encoded == 0


def test_a_model_without_vocabulary_has_the_same_embeddings(photos: Path, folder: Path) -> None:
    bring_up_to_date(Ranker(random_model(), batch_size=BATCH), photos, folder)
    bring_up_to_date(Ranker(random_model(tokens=VOCABULARY), batch_size=BATCH), photos, folder)
    other = (*VOCABULARY[:5], *VOCABULARY[:4:-1])
    with pytest.raises(UserError, match="What differs: vocabulary$"):
        bring_up_to_date(Ranker(random_model(tokens=other), batch_size=BATCH), photos, folder)


def test_one_writer_at_a_time(model: Ranker, photos: Path, folder: Path) -> None:
    with held(folder, "a test", "--index"), pytest.raises(UserError, match="another indexing .*is at work in"):
        bring_up_to_date(model, photos, folder)


def test_folders_with_nothing_to_index(model: Ranker, tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match="nowhere cannot be listed: No such file or directory"):
        bring_up_to_date(model, tmp_path / "nowhere", folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "notes.txt").touch()
    with pytest.raises(UserError, match="photos is empty: neither there nor below is a file whose name ends like"):
        bring_up_to_date(model, tmp_path / "photos", folder)
    assert not folder.exists()
    (tmp_path / "photos" / "a.jpg").write_text("text")
    with pytest.raises(UserError, match=r"none of the 1 files in .* is a readable picture. The first:\n  - a.jpg: not"):
        bring_up_to_date(model, tmp_path / "photos", folder)


def test_an_empty_folder_leaves_its_index_alone(model: Ranker, photos: Path, folder: Path) -> None:
    """Such as a disk that is not mounted."""
    bring_up_to_date(model, photos, folder)
    photos.rename(photos.parent / "away")
    photos.mkdir()
    with pytest.raises(UserError, match="is empty"):
        bring_up_to_date(model, photos, folder)
    assert len(indexed(folder)) == 10


def test_a_damaged_catalogue(model: Ranker, photos: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / CATALOG).write_bytes(b"no database, but long enough to be taken for one" * 100)
    with pytest.raises(UserError, match="the index in .* is damaged: .*; delete that folder"):
        bring_up_to_date(model, photos, folder)


def test_many_pictures_need_usearch_before_any_is_encoded(
    model: Ranker, photos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "USEARCH", ("no_such_package",))
    with pytest.raises(UserError, match="an index of more than 5 files .* needs no_such_package"):
        bring_up_to_date(model, photos, folder, approximate_above=5)
    assert indexed(folder) == {}


def test_the_default_folder_is_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    found = default_folder(tmp_path / "a")
    assert found.parent == tmp_path / "r2d2_jax" / "search"
    assert found.name.startswith("a-")
    assert found == default_folder(tmp_path / "link") != default_folder(tmp_path)
