"""Checks of the arguments of a risk that concern several others."""

from __future__ import annotations

import torch
from torch import nn

from curvext.arguments import as_integer
from curvext.dtypes import dtype_of_sums
from curvext.evaluation.evaluation import Evaluation
from curvext.losses import CausalLMLoss
from curvext.products.compiled import Compiler
from curvext.space import ParameterSpace


def checked_dtype(dtype: torch.dtype | None, own: torch.dtype) -> torch.dtype:
    """The dtype of vectors: the parameters' own, or that of sums."""
    allowed = {own, dtype_of_sums(own)}
    if dtype is None:
        return own
    if dtype not in allowed:
        wanted = " or ".join(sorted(map(str, allowed)))
        raise ValueError(
            f"dtype: expected None or {wanted} for parameters in {own}, got {dtype!r}, in which nothing is computed"
        )
    return dtype


def check_shift(model: nn.Module, loss: object) -> None:
    """Raises a ValueError for the loss that shifts labels on a model of transformers whose labels are not shifted."""
    if not isinstance(loss, CausalLMLoss):
        return
    decodes = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    kind = type(model).__name__
    if decodes or kind.endswith(("ForTokenClassification", "ForMaskedLM")):
        raise ValueError(
            f"loss: CausalLMLoss shifts the labels by one, but those of {kind} are not shifted; use "
            "loss=nn.CrossEntropyLoss(), with the classes moved to dimension 1: "
            "forward=lambda model, batch: model(**batch).logits.transpose(1, 2)"
        )


def checked_chunk(chunk: int | None) -> int | None:
    """``chunk_outputs``: a positive number, or None for whole outputs."""
    if chunk is None:
        return None
    return as_integer("chunk_outputs", chunk, 1, why="or None for whole outputs")


def checked_compiler(
    compile: object, chunk: object, evaluation: Evaluation, space: ParameterSpace
) -> Compiler | None:
    """The compiler of products, if ``compile`` asks for one."""
    if compile is False:
        return None
    if chunk is not None:
        raise ValueError(
            "compile: does not go together with chunk_outputs, whose product is made of chunks; leave one of them"
        )
    backend = "inductor" if compile is True else compile
    if not isinstance(backend, str) or backend not in torch.compiler.list_backends(None):
        raise ValueError(
            f"compile: expected True, False or a backend of torch.compile, got {compile!r}"
        )
    return Compiler(evaluation, space, backend)
