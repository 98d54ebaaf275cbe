"""Factors on disk, as safetensors: readable elsewhere, and loading them runs no code."""

from __future__ import annotations

import json
import os
from typing import Any

import torch
from torch import Tensor

from curvext.kronecker.blocks import (
    Block,
    DenseBlock,
    DiagonalBlock,
    Factors,
    Place,
    SpectralBlock,
)
from curvext.kronecker.factored import BlockOperator, KeptBlocks
from curvext.kronecker.few_rows import Rows
from curvext.kronecker.forms import Form
from curvext.kronecker.kronecker_block import KroneckerBlock
from curvext.kronecker.spectral import Spectral
from curvext.space import ParameterSpace
from curvext.storage import read_tensors, write_tensors

#: the entry of a file's metadata that describes its tensors
_KEY = "curvext.factors"


def save_factors(operator: BlockOperator, path: str | os.PathLike[str]) -> None:
    """Writes the factors of a block-diagonal operator to a file, bit for bit.

    An existing file is replaced in one step once the new one is complete. The tensors are named ``"<block>/a"``,
    ``"<block>/g"`` after the block's first parameter; what each is stands in the metadata. Where fewer data than a side
    made it, they are there as ``"<block>/rows_a"``, ``"<block>/rows_g"``, as its eigenvectors are made of them.

    Args:
        operator: any of :class:`curvext.KFACOperator`, :class:`curvext.EKFACOperator`,
            :class:`curvext.ShampooOperator`, :class:`curvext.BlockDiagonalOperator`, or what their ``inverse`` and
            ``power`` return. Its blocks of now are written.
        path: the file; its folder must exist.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: an argument is of another form.
        FileNotFoundError: there is no such folder; OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch, curvext as cx
        >>> model, loss = torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss()
        >>> K = cx.KFACOperator(model, loss, (torch.eye(2), torch.tensor([0, 1])))
        >>> path = tempfile.mkdtemp() + "/factors.safetensors"
        >>> cx.save_factors(K, path)
        >>> torch.equal(cx.load_factors(path).to_dense(), K.to_dense())
        True
    """
    if not isinstance(operator, BlockOperator):
        raise TypeError(
            "save_factors: operator: expected a block-diagonal operator of curvext, got "
            f"{type(operator).__name__}"
        )
    tensors: dict[str, Tensor] = {}
    blocks = [_written(block, tensors) for block in operator._now("save_factors")]
    about = {
        "shapes": {name: list(shape) for name, shape in operator.param_shapes.items()},
        "dtype": _name(operator.dtype),
        "parameters": _name(operator.space.dtype),
        "by_sides": operator.by_sides,
        "blocks": blocks,
    }
    write_tensors("save_factors", tensors, path, {_KEY: json.dumps(about)})


def load_factors(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> BlockOperator:
    """Reads what :func:`save_factors` wrote: an operator whose values stay.

    All methods work; ``scores`` needs risks as ``query`` and ``train``, because the file holds neither model nor data.

    Args:
        path: the file.
        device: where the tensors go.

    Raises:
        ImportError: safetensors is not installed.
        TypeError: an argument is of another form.
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or another program's.
    """
    tensors, words = read_tensors("load_factors", path, device, _KEY, "save_factors")
    # products differ in their last bit with where in memory a tensor begins, which in a file is anywhere
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    about: dict[str, Any] = json.loads(words[_KEY])
    shapes = {name: torch.Size(shape) for name, shape in about["shapes"].items()}
    dtype = _dtype(about["dtype"])
    space = ParameterSpace.of_shapes(shapes, _dtype(about["parameters"]), torch.device(device))
    blocks = [_read(block, tensors, dtype) for block in about["blocks"]]
    return KeptBlocks(space, blocks, dtype, about["by_sides"])


def _written(block: Block, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a block is but for its tensors, which are added to ``tensors``."""
    parts = {"g": block.factors.g, "a": block.factors.a}
    rows = dict(zip(("rows_a", "rows_g"), block.factors.rows, strict=True))
    parts |= {key: None if of is None else of.x for key, of in rows.items()}
    if isinstance(block, SpectralBlock):
        spectral = block.spectral
        parts |= {"values": spectral.values, "out": spectral.out, "inner": spectral.inner}
    if isinstance(block, KroneckerBlock):
        parts["divisor"] = block.divisor
    name = block.params[0]
    tensors.update({f"{name}/{key}": t for key, t in parts.items() if t is not None})
    form = block.form
    return {
        "class": type(block).__name__,
        "params": block.params,
        "slices": [[s.start, s.stop] for s in block.place.slices],
        "structure": block.structure,
        "why": block.why,
        "sizes": form.sizes,
        "order": form.order,
        "bias": form.bias,
        "bias_first": form.bias_first,
        "scales": {key: of.scale for key, of in rows.items() if of is not None},
        "rest": block.spectral.rest if isinstance(block, SpectralBlock) else 0.0,
        "semidefinite": isinstance(block, DenseBlock) and block.semidefinite,
    }


def _read(about: dict[str, Any], tensors: dict[str, Tensor], dtype: torch.dtype) -> Block:
    name, why = about["params"][0], about["why"]
    slices = tuple(slice(start, stop) for start, stop in about["slices"])
    place = Place(tuple(about["params"]), slices, dtype)
    form = Form(tuple(about["sizes"]), tuple(about["order"]), about["bias"], about["bias_first"])

    def part(key: str) -> Tensor | None:
        return tensors.get(f"{name}/{key}")

    def rows(key: str) -> Rows | None:
        x = part(key)
        return None if x is None else Rows(x, about["scales"][key])

    g, values = part("g"), part("values")
    assert g is not None
    factors = Factors(part("a"), g, (rows("rows_a"), rows("rows_g")))
    if about["class"] == "DenseBlock":
        return DenseBlock(place, g, about["semidefinite"], why)
    if about["class"] == "DiagonalBlock":
        return DiagonalBlock(place, g, why)
    if about["class"] == "KroneckerBlock":
        return KroneckerBlock(place, form, factors, why, part("divisor"))
    assert values is not None
    spectral = Spectral(part("out"), part("inner"), values, about.get("rest", 0.0))
    return SpectralBlock(place, form, factors, spectral, about["structure"], why)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
