"""Files of tensors: what goes in comes out, nothing in them runs, and nothing is left of what could not be written."""

import errno
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from r2d2_jax.convert import tensor_files
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
    torch.save({"h": torch.tensor([1.5], dtype=torch.float16), "b": torch.tensor([2.5], dtype=torch.bfloat16)},
               tmp_path / "x.pth")
    read = read_tensors(tmp_path / "x.pth")
    assert {key: (value.dtype, value.tolist()) for key, value in read.items()} == {
        "h": (np.float32, [1.5]), "b": (np.float32, [2.5])}


def test_files_older_than_pytorch_1_6_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert read_tensors(tmp_path / "x.pth")["a"].tolist() == [1, 1]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_payload_is_refused_and_does_not_run(tmp_path: Path, zipped: bool) -> None:
    proof = tmp_path / "ran"
    torch.save({"model": {"a": torch.ones(2)}, "config": Payload(proof)}, tmp_path / "evil.pth",
               _use_new_zipfile_serialization=zipped)
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


@pytest.mark.parametrize(("name", "message"), [
    ("x.pth", "x.pth is no whole PyTorch file"), ("x.safetensors", "x.safetensors is no whole safetensors file")])
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


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", TENSORS)
    (tmp_path / "plain").touch()
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
