"""A risk as the functions that scipy.optimize.minimize asks for."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvext.algorithms.risks import Movable
from curvext.algorithms.together import together
from curvext.arguments import as_choice, from_array

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

_CURVATURES = ("hessian", "ggn", "fisher", "empirical_fisher")


@together
def objective(risk: Movable, curvature: str = "hessian") -> Objective:
    """A risk as functions of a NumPy vector: ``fun``, ``jac``, ``hessp``, ``hess`` and ``x0``.

    **They move the model.** Each writes its argument into the parameters, in place, and leaves it there; an
    argument that stands there already is not written, so value, gradient and products at one point share
    one linearisation. ``write(result.x)`` puts the solution in, ``restore()`` the start. As a context
    manager it restores on leaving.

        with cx.objective(risk) as o:
            result = scipy.optimize.minimize(o.fun, o.x0, method="trust-ncg", jac=o.jac, hessp=o.hessp)
        o.write(result.x)  # the solution is kept only if it is written

    Args:
        risk: a :class:`curvext.EmpiricalRisk`.
        curvature: which matrix ``hessp`` and ``hess`` multiply with: "hessian", "ggn", "fisher" or
            "empirical_fisher".

    Raises:
        TypeError: ``risk`` has no such method, or no parameters.
        ValueError: ``curvature`` is another.

    Example:
        >>> import torch, curvext as cx
        >>> from scipy.optimize import minimize
        >>> model, loss = torch.nn.Linear(2, 1, bias=False).double(), torch.nn.MSELoss()
        >>> x, y = torch.eye(2).double(), torch.ones(2, 1).double()
        >>> with cx.objective(cx.EmpiricalRisk(model, loss, (x, y))) as o:
        ...     result = minimize(o.fun, o.x0, jac=o.jac, hessp=o.hessp, method="Newton-CG")
        >>> result.x.round(6).tolist()
        [1.0, 1.0]
    """
    curvature = as_choice("objective: curvature", curvature, _CURVATURES)
    missing = [
        a for a in ("value", "gradient", curvature, "flat_parameters") if not hasattr(risk, a)
    ]
    if missing:
        raise TypeError(
            f"objective: risk: expected an EmpiricalRisk; {type(risk).__name__} has no "
            + ", ".join(missing)
        )
    return Objective(risk, curvature, _array(risk.flat_parameters()))


@dataclass(frozen=True, eq=False)
class Objective:
    """What :func:`objective` gives.

    Attributes:
        risk: the risk.
        curvature: which matrix the products are with.
        x0: the parameters at the start, a float64 array ``[P]``.
    """

    risk: Movable
    curvature: str
    x0: Any

    def fun(self, x: Any) -> float:
        """L(x)."""
        self.write(x)
        return float(self.risk.value(linearise=True))

    def jac(self, x: Any) -> Any:
        """∇L(x), a float64 array ``[P]``."""
        self.write(x)
        return _array(self.risk.gradient())

    def hessp(self, x: Any, p: Any) -> Any:
        """H(x) p, a float64 array ``[P]``."""
        self.write(x)
        operator = getattr(self.risk, self.curvature)()
        vector = from_array("objective: p", p).to(operator.device, operator.dtype)
        return _array(operator.matvec(vector))

    def hess(self, x: Any) -> ScipyOperator:
        """H(x) as a ``scipy.sparse.linalg.LinearOperator``; it stays that of ``x`` wherever the model is moved."""
        from scipy.sparse.linalg import LinearOperator as ScipyOperator

        here = x.copy()

        def product(p: Any) -> Any:
            return self.hessp(here, p.reshape(-1))

        size = self.risk.space.size
        return ScipyOperator((size, size), matvec=product, rmatvec=product, dtype=self.x0.dtype)

    def write(self, x: Any) -> None:
        """Writes ``x`` into the model's parameters, in place, where it does not stand there already.

        Raises:
            ValueError: ``x`` has another shape.
        """
        space = self.risk.space
        vector = from_array("objective: x", x).to(space.device, space.dtype)
        if vector.shape != (space.size,):
            raise ValueError(
                f"objective: x: expected shape [{space.size}], got {list(vector.shape)}"
            )
        with torch.no_grad():
            for p, new in space.in_memory(vector):
                if not torch.equal(p, new):
                    p.copy_(new)

    def restore(self) -> None:
        """Writes the start back."""
        self.write(self.x0)

    def __enter__(self) -> Objective:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()


def _array(vector: Tensor) -> Any:
    # a copy: SciPy writes into what it is given
    return vector.detach().to("cpu", torch.float64, copy=True).numpy()
