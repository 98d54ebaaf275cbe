"""An operator as SciPy sees it: NumPy arrays in, NumPy arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvext.arguments import from_array

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator


def scipy_operator(
    product: Callable[[Tensor], Tensor],
    size: int,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> ScipyOperator:
    """A symmetric ``scipy.sparse.linalg.LinearOperator``.

    Args:
        product: A V for V ``[P, K]``.
        size: P.
        dtype, device: of V; None for the default.
    """
    import numpy as np
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

    inside = dtype or torch.get_default_dtype()
    # NumPy has no bfloat16
    outside = torch.float32 if inside is torch.bfloat16 else inside

    def matmat(X: Any) -> Any:
        if np.iscomplexobj(X):
            return matmat(X.real) + 1j * matmat(X.imag)
        return product(from_array("to_scipy: x", X).to(device, inside)).to("cpu", outside).numpy()

    def matvec(x: Any) -> Any:
        return matmat(x.reshape(-1, 1)).reshape(-1)

    return ScipyOperator(
        shape=(size, size),
        matvec=matvec,
        rmatvec=matvec,
        matmat=matmat,
        rmatmat=matmat,
        dtype=torch.empty(0, dtype=outside, device="cpu").numpy().dtype,
    )
