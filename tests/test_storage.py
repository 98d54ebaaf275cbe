"""A saved diagonal comes back bit by bit, and a failed save loses nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import curvext as cx

# absent on a bare GPU machine: skipped, and counted
safetensors = pytest.importorskip("safetensors")
pytest.importorskip("safetensors.torch")


def bits(t: torch.Tensor) -> torch.Tensor:
    return t.contiguous().reshape(-1).view(torch.uint8)


def assert_same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert list(got) == list(wanted)
    for name, t in wanted.items():
        assert got[name].dtype == t.dtype and got[name].shape == t.shape, name
        assert torch.equal(bits(got[name]), bits(t)), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_diagonal_comes_back_bit_by_bit(tmp_path, dtype):
    diagonal = {
        "weight": torch.randn(7, 5).to(dtype)[1:6:2, ::2],  # not contiguous
        "tiny": torch.tensor([torch.finfo(dtype).smallest_normal / 2, 0.0, -0.0], dtype=dtype),
        "scalar": torch.tensor(3.25, dtype=dtype),
        "empty": torch.empty(0, 4, dtype=dtype),
    }
    cx.save_diagonal(diagonal, tmp_path / "d.safetensors")
    assert_same(cx.load_diagonal(tmp_path / "d.safetensors"), diagonal)


def test_what_fisher_diagonal_returns_can_be_saved_as_it_is(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    data = (torch.randn(9, 3), torch.randint(0, 2, (9,)))
    diagonal = cx.fisher_diagonal(model, nn.CrossEntropyLoss(), data, kind="exact")
    path = str(tmp_path / "d.safetensors")
    cx.save_diagonal(diagonal, path)
    assert_same(cx.load_diagonal(path), diagonal)


def test_the_order_of_names_and_mixed_dtypes_are_kept(tmp_path):
    diagonal = {
        "z": torch.ones(1, dtype=torch.float16),
        "a": torch.ones(2, dtype=torch.float64),
        "m.ü": torch.ones(3),
    }
    cx.save_diagonal(diagonal, tmp_path / "d")
    assert_same(cx.load_diagonal(tmp_path / "d"), diagonal)


def test_the_same_tensor_may_stand_under_two_names(tmp_path):
    whole = torch.arange(6.0)
    diagonal = {"a": whole, "b": whole, "part": whole[2:]}
    cx.save_diagonal(diagonal, tmp_path / "d")
    assert_same(cx.load_diagonal(tmp_path / "d"), diagonal)


def test_a_loaded_diagonal_outlives_its_file_and_may_be_written_to(tmp_path):
    cx.save_diagonal({"a": torch.ones(1000)}, tmp_path / "d")
    loaded = cx.load_diagonal(tmp_path / "d", device=torch.device("cpu"))
    loaded["a"].add_(1)
    (tmp_path / "d").unlink()
    assert loaded["a"].sum() == 2000


def test_metadata_is_kept_and_the_version_is_added(tmp_path):
    cx.save_diagonal({"a": torch.ones(2)}, tmp_path / "d", {"kind": "mc", "samples": "3"})
    with safetensors.safe_open(tmp_path / "d", "pt") as file:
        words = file.metadata()
    assert words["kind"] == "mc" and words["samples"] == "3"
    assert words["curvext"] == cx.__version__


def test_loading_goes_to_the_device(tmp_path, device):
    cx.save_diagonal({"a": torch.ones(2, device=device)}, tmp_path / "d")
    assert cx.load_diagonal(tmp_path / "d", device)["a"].device.type == device.type


def test_an_existing_file_is_replaced_and_no_other_is_left(tmp_path):
    for value in (1.0, 2.0):
        cx.save_diagonal({"a": torch.tensor([value])}, tmp_path / "d")
    assert cx.load_diagonal(tmp_path / "d")["a"].item() == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_nothing_is_lost_when_writing_fails(tmp_path, monkeypatch):
    cx.save_diagonal({"a": torch.ones(3)}, tmp_path / "d")

    def full_disk(tensors, filename, metadata=None):
        Path(filename).write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        cx.save_diagonal({"a": torch.zeros(3)}, tmp_path / "d")
    assert cx.load_diagonal(tmp_path / "d")["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize(
    "call",
    [lambda p: cx.save_diagonal({"a": torch.ones(1)}, p), cx.load_diagonal],
    ids=["save_diagonal", "load_diagonal"],
)
def test_without_safetensors_the_message_says_how_to_get_it(tmp_path, monkeypatch, call):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ImportError, match=r"pip install curvext\[save\]"):
        call(tmp_path / "d")


ONE = {"a": torch.ones(1)}


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (([torch.ones(1)], "d"), TypeError, "diagonal: expected {name: tensor}, got list"),
        (({}, "d"), ValueError, "diagonal: expected {name: tensor}, got an empty one"),
        (({0: torch.ones(1)}, "d"), TypeError, "diagonal: .* the name 0 of type int"),
        (({"a": 1.0}, "d"), TypeError, "diagonal: .* float for 'a'"),
        (
            ({"a": torch.eye(2).to_sparse()}, "d"),
            TypeError,
            "diagonal: .* torch.sparse_coo for 'a'",
        ),
        ((ONE, 3), TypeError, "path: expected a str or os.PathLike, got int"),
        ((ONE, "d", "exact"), TypeError, "metadata: expected {str: str}, got str"),
        ((ONE, "d", {"samples": 3}), TypeError, "metadata: .* 'samples': 3; format"),
        ((ONE, "d", {"curvext": "9"}), ValueError, "metadata: the key 'curvext'"),
    ],
)
def test_a_wrong_argument_of_save_diagonal_is_named(
    tmp_path, monkeypatch, arguments, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^save_diagonal: {message}"):
        cx.save_diagonal(*arguments)
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="save_diagonal: path: there is no folder '.*absent'"
    ):
        cx.save_diagonal(ONE, tmp_path / "absent" / "d")
    with pytest.raises(OSError, match="d"):
        (tmp_path / "d").mkdir()
        cx.save_diagonal(ONE, tmp_path / "d")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_wrong_argument_of_load_diagonal_is_named(tmp_path):
    with pytest.raises(TypeError, match="^load_diagonal: path: .* got NoneType"):
        cx.load_diagonal(None)
    with pytest.raises(TypeError, match="^load_diagonal: device: .* got float"):
        cx.load_diagonal(tmp_path / "d", 0.5)
    with pytest.raises(FileNotFoundError):
        cx.load_diagonal(tmp_path / "absent")


def test_another_programs_file_is_refused(tmp_path):
    safetensors.torch.save_file(nn.Linear(2, 2).state_dict(), tmp_path / "weights")
    with pytest.raises(ValueError, match="^load_diagonal: path: .* not written by save_diagonal"):
        cx.load_diagonal(tmp_path / "weights")


def test_a_damaged_file_is_refused(tmp_path):
    cx.save_diagonal({"a": torch.ones(100)}, tmp_path / "d")
    (tmp_path / "d").write_bytes((tmp_path / "d").read_bytes()[:-4])
    with pytest.raises(ValueError, match="^load_diagonal: path: .* no whole safetensors file"):
        cx.load_diagonal(tmp_path / "d")
