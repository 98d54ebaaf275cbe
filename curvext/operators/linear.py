"""Linear operators as values: products, sums, scalings, and the way to SciPy.

One file because products, checks and algebra of operators make each other.
"""

from __future__ import annotations

import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from curvext.arguments import check_dense
from curvext.errors import NoClosedFormError
from curvext.finite import finite_answer, is_finite
from curvext.operators.forms import local_entries, whole_vector
from curvext.operators.to_scipy import scipy_operator
from curvext.processes import ALONE, Group, LocalVectors, collective
from curvext.space import ParameterSpace

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator as ScipyOperator

#: ``to_dense`` refuses operators with more rows than this
DENSE_LIMIT = 20_000

Vector = TypeVar("Vector", Tensor, Mapping[str, Tensor])


class LinearOperator(ABC):
    """A symmetric linear map ℝ^P → ℝ^P that is never formed.

    ``A @ v`` takes a flat vector ``[P]``, a matrix ``[P, K]`` or, for operators on a model's
    parameters, ``{name: tensor}``; the answer has the same form. Operators add, subtract, scale
    and negate.

    Where the parameters are sharded over processes (``fully_shard``), ``A @ v`` also takes ``{name: DTensor}`` in the
    placements of the parameters, and this process's entries ``[P_r]`` or ``[P_r, K]``: see :meth:`local`.
    """

    #: P
    size: int
    #: dtype of vectors; None for an operator that takes any
    dtype: torch.dtype | None
    #: device of vectors; None for an operator that takes any
    device: torch.device | None
    #: names and shapes of the parameters, where the operator acts on a model
    space: ParameterSpace | None = None
    #: whether a vector on CUDA is checked for nan and inf (a synchronisation); on CPU it always is
    check_finite: bool = False
    #: the processes whose data define the operator
    group: Group = ALONE
    #: how vectors are cut among the processes, where the parameters are
    local_vectors: LocalVectors | None = None

    @abstractmethod
    def _columns(self, columns: list[Tensor]) -> Tensor:
        """The product with each of K flat vectors ``[P]`` of any stride, all checked, as new rows ``[K, P]``."""

    # ------------------------------------------------------------------ products

    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return (self.size, self.size)

    @collective
    def matvec(self, v: Tensor) -> Tensor:
        """A v for a flat vector ``[P]``, or for this process's entries ``[P_r]`` of one.

        Raises:
            TypeError: ``v`` is no tensor or has another dtype.
            ValueError: its shape or device does not fit, or it contains nan or inf.
        """
        return self._matvec(v)

    def _matvec(self, v: Vector) -> Any:
        where = f"{type(self).__name__} @ v"
        if isinstance(v, Tensor) and self.local_vectors is None:
            self._check(v, where, 1)
            return finite_answer(self._columns([v.contiguous()])[0], where, self.check_finite)
        vector, back = whole_vector(self, v, where, 1)
        answer = finite_answer(self._columns([vector.contiguous()])[0], where, self.check_finite)
        return answer if back is None else back(answer)

    @collective
    def matmat(self, V: Tensor) -> Tensor:
        """A V for a matrix ``[P, K]``, or ``[P_r, K]``; columns share the passes over data and network.

        The answer's columns are contiguous. Noncontiguous columns of ``V`` are copied one at a time.
        """
        where = f"{type(self).__name__} @ V"
        V, back = whole_vector(self, V, where, 2)
        if V.shape[1] == 0:
            with self.group.call(f"{type(self).__name__} @ V", [V]):
                answer = V.clone()
        else:
            answer = finite_answer(self._columns(list(V.unbind(1))), where, self.check_finite).T
        return answer if back is None else back(answer)

    @collective
    def __matmul__(self, v: Vector) -> Vector:
        if isinstance(v, Tensor):
            if v.ndim == 2:
                return self.matmat(v)
            return self._matvec(v)
        if isinstance(v, Mapping):
            return self._matvec(v)
        raise TypeError(f"A @ v: expected a tensor or {{name: tensor}}, got {type(v).__name__}")

    @property
    def T(self) -> LinearOperator:
        """The transpose, which is the operator itself: all are symmetric."""
        return self

    # ------------------------------------------------------------------ named blocks

    @property
    def param_shapes(self) -> dict[str, torch.Size]:
        """``{name: shape}`` in the order of the flat vector."""
        return dict(self._named_space().shapes)

    def split(self, v: Tensor) -> dict[str, Tensor]:
        """A flat ``[P]`` or ``[P, K]`` tensor as views ``{name: [*shape]}`` or ``{name: [*shape, K]}``."""
        return self._named_space().split(v)

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """``{name: tensor}`` as a flat vector ``[P]``."""
        return self._named_space().flatten(named)

    def _named_space(self) -> ParameterSpace:
        if self.space is None:
            raise TypeError(
                f"{type(self).__name__} acts on plain vectors; it has no parameter names"
            )
        return self.space

    # ------------------------------------------------------------------ entries of this process

    @collective
    def local(self, v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """This process's entries ``[P_r]`` or ``[P_r, K]`` of a vector: those of its shards of the parameters.

        Args:
            v: flat ``[P]`` or ``[P, K]``, the same on every process; or ``{name: DTensor}`` in the placements of the
                parameters, or ``{name: tensor}``.

        Returns:
            the pieces of the parameters one after the other, each in row-major order; of a parameter that every
            process has whole, the r-th piece along its first dimension. Where parameters are whole, all of v.

        Raises:
            ValueError: the processes do not have the same v.
        """
        return local_entries(self, v)

    @collective
    def full(self, v: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The flat vector ``[P]`` or ``[P, K]`` of what :meth:`local` gave each process, or of ``{name: DTensor}``."""
        where = f"{type(self).__name__}.full: v"
        vector, back = whole_vector(self, v, where, 1, 2)
        if back is None:  # nothing has been said yet
            with self.group.call(where, [vector]):
                pass
        return vector

    @property
    def entries(self) -> Tensor:
        """Where this process's entries are in the flat vector, ``[P_r]``, int64; only where parameters are sharded.

        Raises:
            AttributeError: parameters are whole on each process, and so are vectors.
        """
        return self._sharded("entries").entries(torch.empty(0, device=self.device).device)

    @property
    def inner(self) -> Callable[[Tensor, Tensor], Tensor]:
        """``inner(a, b)`` is aᵀ b of local vectors ``[P_r, K]`` and ``[P_r, m]``, ``[K, m]``, by one reduction.

        All processes call it together. It is summed in float64 and given in float32 at least. Whole vectors give their
        product without a message.

        Raises:
            AttributeError: parameters are whole on each process, and so are vectors.
        """
        return self._sharded("inner").inner

    def _sharded(self, what: str) -> LocalVectors:
        if self.local_vectors is None:
            raise AttributeError(
                f"{type(self).__name__} has no {what}: vectors are whole on each process, as the parameters are"
            )
        return self.local_vectors

    # ------------------------------------------------------------------ summaries

    @collective
    def diagonal(self) -> Tensor:
        """The diagonal, ``[P]``, where it has a closed form.

        Raises:
            NoClosedFormError: it has none; the message names what to use.
        """
        raise NoClosedFormError(
            f"{type(self).__name__}.diagonal: no closed form that costs less than P products. Use "
            "curvext.diagonal(A), an estimate with its standard error; with probes=P it is exact"
        )

    @collective
    def trace(self) -> Tensor:
        """The trace, a scalar tensor, where it is cheap and exact.

        Raises:
            NoClosedFormError: it is not; the message names what to use.
        """
        raise NoClosedFormError(
            f"{type(self).__name__}.trace: no closed form that costs less than P products. Use "
            "curvext.trace(A), an estimate with its standard error; with probes=P it is exact"
        )

    @collective
    def to_dense(self) -> Tensor:
        """The matrix ``[P, P]``, by P products.

        Raises:
            ValueError: P is larger than 20,000 (the matrix would take 1.6 GB or more in float32).
        """
        if self.size > DENSE_LIMIT:
            raise ValueError(
                f"to_dense: P = {self.size} is over the limit of {DENSE_LIMIT}; use products, or select fewer params"
            )
        block = 64
        dtype, device = self.dtype or torch.get_default_dtype(), self.device
        dense = torch.empty(self.size, self.size, dtype=dtype, device=device)
        for start in range(0, self.size, block):
            width = min(block, self.size - start)
            eye = torch.zeros(self.size, width, dtype=dtype, device=device)
            eye[start : start + width].fill_diagonal_(1)
            dense[:, start : start + width] = self.matmat(eye)
        return dense

    def identity(self) -> dict[str, Any]:
        """What tells this matrix from another, by topic: words, and hashes that are the same on all ranks."""
        return {"the operator": type(self).__name__}

    def to_scipy(self) -> ScipyOperator:
        """A ``scipy.sparse.linalg.LinearOperator`` on NumPy arrays of any dtype; of x + iy it gives A x + i A y."""
        return scipy_operator(self.matmat, self.size, self.dtype, self.device)

    # ------------------------------------------------------------------ algebra

    def __add__(self, other: LinearOperator | float) -> LinearOperator:
        if isinstance(other, numbers.Real) and other == 0:  # where sum() starts
            return self
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return WeightedSum([(1.0, self), (1.0, other)])

    __radd__ = __add__

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        if not isinstance(other, LinearOperator):
            return NotImplemented
        return WeightedSum([(1.0, self), (-1.0, other)])

    def __mul__(self, factor: float) -> LinearOperator:
        if isinstance(factor, Tensor) and factor.numel() == 1:
            factor = float(factor)
        if not isinstance(factor, numbers.Real):
            return NotImplemented
        return WeightedSum([(float(factor), self)])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> LinearOperator:
        return self * (1.0 / divisor)

    def __neg__(self) -> LinearOperator:
        return self * -1.0

    # ------------------------------------------------------------------ checks

    def _check(self, v: Any, where: str, *ndim: int) -> None:
        if not isinstance(v, Tensor) or v.ndim not in ndim or v.shape[0] != self.size:
            check_dense(where, v)
            shapes = {1: f"[{self.size}]", 2: f"[{self.size}, K]"}
            wanted = " or ".join(shapes[n] for n in ndim)
            raise ValueError(f"{where}: expected shape {wanted}, got {list(v.shape)}")
        self._check_form(v, where)

    def _check_form(self, v: Any, where: str) -> None:
        """Checks everything but the shape: a dense tensor of this dtype and device, finite where that is checked."""
        check_dense(where, v)
        if self.dtype is not None and v.dtype != self.dtype:
            raise TypeError(f"{where}: expected dtype {self.dtype}, got {v.dtype}")
        if self.device is not None and v.device != self.device:
            raise ValueError(f"{where}: expected device {self.device}, got {v.device}")
        if (
            (v.device.type == "cpu" or self.check_finite)
            and v.is_floating_point()
            and not is_finite(v)
        ):
            raise ValueError(f"{where}: contains nan or inf")


class WeightedSum(LinearOperator):
    """Σ_i c_i A_i of operators of one size; made by the operators' own arithmetic.

    Raises:
        ValueError: sizes, dtypes, devices or parameters differ.
    """

    def __init__(self, terms: list[tuple[float, LinearOperator]]) -> None:
        self.terms: list[tuple[float, LinearOperator]] = []
        for factor, operator in terms:
            inner = operator.terms if isinstance(operator, WeightedSum) else [(1.0, operator)]
            self.terms += [(factor * c, a) for c, a in inner]
        operators = [a for _, a in self.terms]
        self.size = operators[0].size
        self.dtype = _common("dtype", [a.dtype for a in operators])
        self.device = _common("device", [a.device for a in operators])
        self.space = next((a.space for a in operators if a.space is not None), None)
        self.check_finite = any(a.check_finite for a in operators)
        self.group = _common_group(operators)
        cut = [a.local_vectors for a in operators if a.local_vectors is not None]
        self.local_vectors = cut[0] if cut else None
        for a in operators:
            if a.size != self.size:
                raise ValueError(f"operators of sizes {self.size} and {a.size} cannot be added")
            if (
                a.space is not None
                and self.space is not None
                and a.space.shapes != self.space.shapes
            ):
                raise ValueError("operators on different parameters cannot be added")

    def _columns(self, columns: list[Tensor]) -> Tensor:
        (factor, operator), *others = self.terms
        total = operator._columns(columns)
        if factor != 1:
            total *= factor
        for factor, operator in others:
            total.add_(operator._columns(columns), alpha=factor)
        return total

    def identity(self) -> dict[str, Any]:
        """What the terms say, and their factors."""
        found: dict[str, Any] = {}
        for number, (factor, a) in enumerate(self.terms, 1):
            said = {**a.identity(), "the factor": factor}
            found |= {f"{topic} of term {number} of the sum": what for topic, what in said.items()}
        return found

    def diagonal(self) -> Tensor:
        """Σ_i c_i diag A_i, where every term has one."""
        parts = [factor * a.diagonal().to(self.device, self.dtype) for factor, a in self.terms]
        return torch.stack(parts).sum(0)

    def trace(self) -> Tensor:
        """Σ_i c_i tr A_i, where every term has one."""
        parts = [factor * a.trace().to(self.device, self.dtype) for factor, a in self.terms]
        return torch.stack(parts).sum()


def _common(what: str, values: list[Any]) -> Any:
    known = {v for v in values if v is not None}
    if len(known) > 1:
        raise ValueError(
            f"operators of different {what} cannot be added: {sorted(map(str, known))}"
        )
    return known.pop() if known else None


def _common_group(operators: list[LinearOperator]) -> Group:
    """The process group of several operators; operators on plain vectors belong to any."""
    groups = [a.group for a in operators if a.space is not None]
    if any(not group.same_as(groups[0]) for group in groups):
        raise ValueError(
            "operators of different process groups cannot be added, nor one with process_group= and one without: "
            "they are of different data"
        )
    return groups[0] if groups else ALONE
