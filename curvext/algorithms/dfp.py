"""Davidon, Fletcher and Powell's update, the one of the quasi-Newton family that SciPy lacks."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from scipy.optimize import HessianUpdateStrategy

from curvext.arguments import as_number


class DFP(HessianUpdateStrategy):
    """The DFP update of a Hessian or its inverse, for ``scipy.optimize.minimize(method="trust-constr")``.

        H ← H − H y yᵀ H / yᵀH y + s sᵀ / sᵀy                       (inverse Hessian)
        B ← (I − y sᵀ/sᵀy) B (I − s yᵀ/sᵀy) + y yᵀ / sᵀy             (Hessian)

    with s the step and y the difference of the gradients. BFGS, its dual with s and y exchanged, recovers sooner from a
    bad estimate, so try it first; DFP completes the family of SciPy's BFGS and SR1. The
    matrix stays symmetric to the last bit and positive definite, meets the secant condition B s = y, and on a quadratic
    of P dimensions with exact steps along −H∇ it is the Hessian after P of them.

    Args:
        min_curvature: an update with sᵀy ≤ this · sᵀB s (yᵀH y for the inverse) would lose definiteness, at once or to
            rounding, and is skipped.
        init_scale: the multiple of I to start from; "auto" is yᵀy/sᵀy of the first step, as SciPy takes it.

    Attributes:
        skipped: how many updates were skipped; the first of them warns.

    Raises:
        ImportError: by ``curvext.DFP``, SciPy is not installed.
        TypeError, ValueError: an argument does not fit.

    Source:
        Nocedal, Wright, "Numerical optimization", 2006, equations (6.13) to (6.15).

    Example:
        >>> import torch, curvext as cx
        >>> from scipy.optimize import minimize
        >>> model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
        >>> x, y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> with cx.objective(cx.EmpiricalRisk(model, loss, (x, y))) as o:
        ...     result = minimize(o.fun, o.x0, jac=o.jac, hess=cx.DFP(), method="trust-constr")
        >>> result.x.round(4).tolist()
        [1.0, 1.0]
    """

    def __init__(self, min_curvature: float = 1e-8, init_scale: float | str = "auto") -> None:
        self._least = as_number(
            "DFP: min_curvature", min_curvature, "a number ≥ 0", lambda v: v >= 0
        )
        self._scale: float | None = None
        if init_scale != "auto":
            self._scale = as_number(
                "DFP: init_scale", init_scale, "a number > 0, or 'auto'", lambda v: 0 < v < np.inf
            )
        self.skipped = 0

    def initialize(self, n: int, approx_type: str) -> None:
        """Starts from the identity of ``n`` rows, as an estimate of the "hess" or the "inv_hess"."""
        if approx_type not in ("hess", "inv_hess"):
            raise ValueError(
                f"DFP.initialize: approx_type: expected 'hess' or 'inv_hess', got {approx_type!r}"
            )
        self.approx_type = approx_type
        self._matrix = np.eye(n)
        self._fresh = True

    def update(self, delta_x: Any, delta_grad: Any) -> None:
        """Takes in a step s and the difference y of the gradients at its ends; skips one that has no curvature."""
        s, y = np.asarray(delta_x, dtype=float), np.asarray(delta_grad, dtype=float)
        direct = self.approx_type == "hess"
        sy = float(s @ y)
        if self._fresh and sy > 0:
            scale = self._scale
            if scale is None:
                scale = float(y @ y) / sy if direct else sy / float(y @ y)
            self._matrix *= scale
            self._fresh = False
        product = self._matrix @ (s if direct else y)
        size = float(product @ (s if direct else y))
        if not sy > self._least * size or not size > 0:
            self._skip(sy)
            return
        if direct:
            mixed = np.outer(product, y)
            self._matrix += (1 + size / sy) / sy * np.outer(y, y) - (mixed + mixed.T) / sy
        else:
            self._matrix += np.outer(s, s) / sy - np.outer(product, product) / size

    def _skip(self, sy: float) -> None:
        self.skipped += 1
        if self.skipped == 1:
            warnings.warn(
                f"DFP: an update was skipped, as sᵀy = {sy:.3g} shows no positive curvature along the step; the matrix "
                "stays as it was. SR1 takes such steps in; `skipped` counts them",
                RuntimeWarning,
                stacklevel=3,
            )

    def dot(self, p: Any) -> Any:
        """The matrix times ``p``."""
        return self._matrix @ p

    def get_matrix(self) -> Any:
        """A copy of the matrix, ``[n, n]``."""
        return self._matrix.copy()
