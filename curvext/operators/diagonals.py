"""Diagonals and norms as plain functions, for those who need nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from curvext.arguments import as_choice
from curvext.data import for_one_pass
from curvext.dtypes import dtype_of_sums
from curvext.operators.curvature import CurvatureOperator
from curvext.operators.empirical_fisher import EmpiricalFisherOperator
from curvext.operators.fisher import FisherOperator, MCFisherOperator
from curvext.operators.ggn import GGNOperator
from curvext.options import FunctionOptions, spelled_out
from curvext.processes import Group
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Unpack  # that of typing needs Python 3.11

Operator = TypeVar("Operator", bound=CurvatureOperator)

#: these functions compute once: they keep nothing and skip the check for freshness
_ONCE: dict[str, Any] = {"cache": False}


@spelled_out
def fisher_diagonal(
    model: nn.Module,
    loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
    data: Any,
    kind: str = "empirical",
    params: Selection = None,
    samples: int = 1,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    **options: Unpack[FunctionOptions],
) -> dict[str, Tensor]:
    """The diagonal of a Fisher matrix by parameter.

        diag F_emp = (1/N) Σ_n g_n²,    g_n = N times the gradient of sample n's share of L

    for "mean"; Σ_n g_n² of the shares for "sum".

    Args:
        model, loss, data, params: see :class:`curvext.EmpiricalRisk`; ``data`` may also be a one-shot iterator of
            batches, such as a generator, which is read once.
        kind: "empirical": labels of the data, one backward pass for each batch;
            "mc": ``samples`` labels drawn from the model, the diagonal of :class:`MCFisherOperator`;
            "exact": all labels, one backward pass for each output of a sample.
        samples, seed: for "mc".
        dtype: of the answer; None for float32 where parameters are in bf16 or fp16, else the parameters' own.
        options: further arguments of :class:`curvext.EmpiricalRisk`: ``process_group`` where other processes have
            data too; ``progress=True`` shows a bar.

    Returns:
        ``{name: tensor}`` in the shapes of the parameters.

    Raises:
        ValueError: ``kind`` is unknown, or the loss has no likelihood for "mc" and "exact".

    Example:
        >>> import torch, curvext as cx
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> cx.fisher_diagonal(model, torch.nn.MSELoss(), (torch.eye(2), torch.zeros(2, 1)))
        {'weight': tensor([[2., 2.]])}
    """
    with Group(options.get("process_group")).guarded():
        kind = as_choice("fisher_diagonal: kind", kind, ("empirical", "mc", "exact"))
        _check_dtype("fisher_diagonal", dtype)
    chosen = _ONCE | dict(options)
    operator: EmpiricalFisherOperator | FisherOperator | MCFisherOperator
    if kind == "empirical":
        operator = EmpiricalFisherOperator(model, loss, for_one_pass(data), params, **chosen)
    elif kind == "mc":
        operator = MCFisherOperator(
            model, loss, for_one_pass(data), params, samples=samples, seed=seed, **chosen
        )
    else:
        operator = FisherOperator(model, loss, for_one_pass(data), params, **chosen)
    return _once(operator).named_diagonal(dtype or dtype_of_sums(operator.dtype))


@spelled_out
def ggn_diagonal(
    model: nn.Module,
    loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
    data: Any,
    params: Selection = None,
    dtype: torch.dtype | None = None,
    **options: Unpack[FunctionOptions],
) -> dict[str, Tensor]:
    """The exact diagonal of the generalized Gauss-Newton matrix by parameter.

        diag G = Σ_n Σ_k (J_nᵀ s_nk)²,   H_ℓ = Σ_k s_k s_kᵀ

    One backward pass for each output of a sample; the Jacobian is never materialised.

    Args:
        model, loss, data, params: see :class:`curvext.EmpiricalRisk`; ``data`` may also be a one-shot iterator of
            batches, such as a generator, which is read once.
        dtype: of the answer; None for float32 where parameters are in bf16 or fp16, else the parameters' own.
        options: further arguments of :class:`curvext.EmpiricalRisk`: ``process_group`` where other processes have
            data too; ``progress=True`` shows a bar.

    Returns:
        ``{name: tensor}`` in the shapes of the parameters, in units of L.

    Raises:
        ValueError, TypeError: an argument does not fit, or the loss has no H_ℓ by samples.

    Example:
        >>> import torch, curvext as cx
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> cx.ggn_diagonal(model, torch.nn.MSELoss(), (torch.eye(2), torch.zeros(2, 1)))
        {'weight': tensor([[1.0000, 1.0000]])}
    """
    with Group(options.get("process_group")).guarded():
        _check_dtype("ggn_diagonal", dtype)
    operator = GGNOperator(model, loss, for_one_pass(data), params, **_ONCE | dict(options))
    return _once(operator).named_diagonal(dtype or dtype_of_sums(operator.dtype))


@spelled_out
def per_sample_gradient_norms(
    model: nn.Module,
    loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
    data: Any,
    params: Selection = None,
    dtype: torch.dtype | None = None,
    **options: Unpack[FunctionOptions],
) -> Tensor:
    """‖g_n‖ for every sample, with g_n as in :func:`fisher_diagonal`. One backward pass for each batch.

    Args:
        model, loss, data, params: see :class:`curvext.EmpiricalRisk`; ``data`` may also be a one-shot iterator of
            batches, such as a generator, which is read once.
        dtype: of the answer; None for float32 where parameters are in bf16 or fp16, else the parameters' own.
        options: further arguments of :class:`curvext.EmpiricalRisk`: ``process_group`` where other processes have
            data too; ``progress=True`` shows a bar.

    Returns:
        ``[N]`` in the order of the data.

    Raises:
        ValueError, TypeError: an argument does not fit, or a custom loss couples the samples of a batch.

    Example:
        >>> import torch, curvext as cx
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> cx.per_sample_gradient_norms(model, torch.nn.MSELoss(), (torch.eye(2), torch.zeros(2, 1)))
        tensor([2., 2.])
    """
    with Group(options.get("process_group")).guarded():
        _check_dtype("per_sample_gradient_norms", dtype)
    operator = EmpiricalFisherOperator(
        model, loss, for_one_pass(data), params, **_ONCE | dict(options)
    )
    return _once(operator).gradient_norms(dtype or dtype_of_sums(operator.dtype))


def _once(operator: Operator) -> Operator:
    operator._problem.only_once()
    return operator


def _check_dtype(where: str, dtype: torch.dtype | None) -> None:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"{where}: dtype: expected None or a floating dtype, got {dtype!r}")
