"""Files of tensors: what goes in comes out, nothing in them runs, and nothing is left of what could not be written."""

import argparse
import errno
import os
import pickle
import resource
import stat
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from random_models import VOCABULARY, random_model

from r2d2_jax.convert import tensor_files
from r2d2_jax.convert.conversion import Form, write_model
from r2d2_jax.convert.tensor_files import read_tensors, write_tensors
from r2d2_jax.errors import UserError

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.position_ids": np.arange(3, dtype=np.int64)[None],
    "temp": np.float32(0.07).reshape(()),
}


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("name", ["tensors.pth", "tensors.safetensors"])
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_tensors(tmp_path / name, TENSORS)
    read = read_tensors(tmp_path / name)
    assert read.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert read[key].dtype == tensor.dtype
        assert read[key].shape == tensor.shape
        assert np.array_equal(read[key], tensor)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("wrapper", ["", "model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_are_understood(tmp_path: Path, wrapper: str, prefix: str) -> None:
    state = {f"{prefix}a": torch.ones(2), f"{prefix}b": torch.zeros(3)}
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "x.pth")
    assert set(read_tensors(tmp_path / "x.pth")) == {"a", "b"}


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    torch.save(
        {"h": torch.tensor([1.5], dtype=torch.float16), "b": torch.tensor([2.5], dtype=torch.bfloat16)},
        tmp_path / "x.pth",
    )
    read = read_tensors(tmp_path / "x.pth")
    assert {key: (value.dtype, value.tolist()) for key, value in read.items()} == {
        "h": (np.float32, [1.5]),
        "b": (np.float32, [2.5]),
    }


def test_files_older_than_pytorch_1_6_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "x.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("place", ["array of objects", "arguments"])
def test_a_payload_within_what_is_harmless_is_refused_and_does_not_run(tmp_path: Path, place: str) -> None:
    proof = tmp_path / "ran"
    payload = Payload(proof)
    beside = np.array([payload]) if place == "array of objects" else argparse.Namespace(config=payload)
    torch.save({"model": {"a": torch.ones(2)}, "beside": beside}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil.pth holds more than tensors .* could run code, so it was not opened"):
        read_tensors(tmp_path / "evil.pth")
    assert not proof.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "ran"
    torch.save(
        {"model": {"a": torch.ones(2)}, "config": Payload(proof)},
        tmp_path / "evil.pth",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"evil.pth holds more than tensors .* could run code, so it was not opened"):
        read_tensors(tmp_path / "evil.pth")
    assert not proof.exists()
    torch.load(tmp_path / "evil.pth", weights_only=False)
    assert proof.exists(), "the payload would have run"


def test_a_bare_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    (tmp_path / "evil.bin").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(UserError, match="evil.bin"):
        read_tensors(tmp_path / "evil.bin")
    assert not proof.exists()


class Scripted(torch.nn.Module):
    """A module with nested parts, a buffer, a scalar and a transposed tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        self.scale = torch.nn.Parameter(torch.tensor(2.5))
        self.turned = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.register_buffer("count", torch.tensor([7, 8]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.parts(x) * self.scale


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    module = Scripted().half()
    torch.jit.script(module).save(str(tmp_path / "clip.pt"))
    return tmp_path / "clip.pt", {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def test_torchscript_archives_are_read_without_pytorch(
    archive: tuple[Path, dict[str, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, expected = archive
    monkeypatch.setitem(sys.modules, "torch", None)
    tensors = read_tensors(path)
    assert tensors.keys() == expected.keys()
    assert tensors["parts.0.weight"].dtype == np.float32
    assert all(np.array_equal(tensors[name], expected[name]) for name in expected)


def rewritten(path: Path, name: str, content: bytes) -> None:
    """Puts other content in place of one file of a zip archive."""
    with zipfile.ZipFile(path) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    files[next(entry for entry in files if entry.endswith(name))] = content
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in files.items():
            archive.writestr(entry, data)


def test_a_payload_in_a_torchscript_archive_is_refused_and_does_not_run(
    archive: tuple[Path, dict[str, np.ndarray]], tmp_path: Path
) -> None:
    proof = tmp_path / "ran"
    rewritten(archive[0], "/data.pkl", pickle.dumps(Payload(proof)))
    with pytest.raises(UserError, match="clip.pt holds more than tensors .* it refers to .*; save its"):
        read_tensors(archive[0])
    assert not proof.exists()


@pytest.mark.parametrize("length", [0, 2])
def test_a_torchscript_archive_with_too_few_numbers_is_refused(
    archive: tuple[Path, dict[str, np.ndarray]], length: int
) -> None:
    for number in ("0", "1", "2"):
        rewritten(archive[0], f"/data/{number}", b"\0" * length)
    with pytest.raises(UserError, match=r"clip.pt is no whole PyTorch file: a tensor of .* does not fit into its"):
        read_tensors(archive[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [("x.pth", "x.pth is no whole PyTorch file"), ("x.safetensors", "x.safetensors is no whole safetensors file")],
)
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.97])
def test_truncated_files_are_refused(tmp_path: Path, name: str, message: str, keep: float) -> None:
    write_tensors(tmp_path / name, {"a": np.ones((100, 100), np.float32)})
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=message):
        read_tensors(tmp_path / name)


def test_what_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save([torch.ones(2)], tmp_path / "list.pth")
    with pytest.raises(UserError, match="list.pth holds a list; expected a state dict"):
        read_tensors(tmp_path / "list.pth")


def test_absent_files_and_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none.pth is no file; expected a checkpoint: .safetensors, .pth"):
        read_tensors(tmp_path / "none.pth")
    (tmp_path / "x.onnx").touch()
    with pytest.raises(UserError, match="x.onnx ends in '.onnx'; expected .safetensors"):
        read_tensors(tmp_path / "x.onnx")
    with pytest.raises(UserError, match=r"cannot write .*x.onnx: expected a name that ends in .pth or .safetensors"):
        write_tensors(tmp_path / "x.onnx", TENSORS)


def test_pytorch_is_asked_for_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.pth").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"x.pth needs torch, which is not installed: pip install -e '.\[convert"):
        read_tensors(tmp_path / "x.pth")


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(tensors: object, path: Path) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensor_files, "save_file", half)
    (tmp_path / "x.safetensors").write_bytes(b"what was there before")
    with pytest.raises(UserError, match="No space left on device; nothing was left there; free some space"):
        write_tensors(tmp_path / "x.safetensors", TENSORS)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.safetensors": b"what was there before"}


def test_pytorch_on_a_full_disk_is_one_message(tmp_path: Path) -> None:
    """No file may become longer than 10 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(UserError, match="x.pth: .*File too large; nothing was left there"):
            write_tensors(tmp_path / "x.pth", {"a": np.zeros(10_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    previous = os.umask(0o022)
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": np.ones(2)})
        write_model(random_model(tokens=VOCABULARY), tmp_path / "ours")
        write_model(random_model(tokens=VOCABULARY), tmp_path / "hf", Form.TRANSFORMERS)
    finally:
        os.umask(previous)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}


def test_nothing_of_pytorchs_advice_to_run_code_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "zeros.pth"
    path.write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"zeros.pth is no whole PyTorch file: [^.]*\.tar format; fetch it again$"):
        read_tensors(path)
