"""Linear systems (A + λI) x = b by preconditioned conjugate gradients.

One file because the recurrence, the masking of converged columns and the exits are one algorithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, TypeVar, overload

import torch
from torch import Tensor

from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.lanczos import multiply
from curvext.algorithms.products import Products, SymmetricOperator
from curvext.algorithms.sharded_vectors import is_sharded
from curvext.algorithms.together import together
from curvext.arguments import as_integer, as_number, check_dense
from curvext.progress import Progress
from curvext.results import CGResult

#: by device, iterations between two checks by the host of which systems still run: on CUDA each check synchronises
LOOK_EVERY = {"cpu": 1, "cuda": 8}

#: iterations between two states on disk
SAVE_EVERY = 8

#: a vector by the names of parameters
Named = Mapping[str, Tensor]

Preconditioner = Tensor | Named | SymmetricOperator | Callable[[Tensor], Tensor]


@overload
def cg(
    A: SymmetricOperator,
    b: Tensor,
    damping: float = ...,
    tol: float | None = ...,
    maxiter: int | None = ...,
    x0: Tensor | Named | None = ...,
    preconditioner: Preconditioner | None = ...,
    progress: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
) -> CGResult[Tensor]: ...


@overload
def cg(
    A: SymmetricOperator,
    b: Named,
    damping: float = ...,
    tol: float | None = ...,
    maxiter: int | None = ...,
    x0: Tensor | Named | None = ...,
    preconditioner: Preconditioner | None = ...,
    progress: bool = ...,
    checkpoint: str | PathLike[str] | None = ...,
) -> CGResult[dict[str, Tensor]]: ...


@together
def cg(
    A: SymmetricOperator,
    b: Tensor | Named,
    damping: float = 0.0,
    tol: float | None = None,
    maxiter: int | None = None,
    x0: Tensor | Named | None = None,
    preconditioner: Preconditioner | None = None,
    progress: bool = False,
    checkpoint: str | PathLike[str] | None = None,
) -> CGResult[Tensor] | CGResult[dict[str, Tensor]]:
    """Solves (A + λI) x = b for a symmetric A, by products alone.

    Where a search direction d has dᵀ(A + λI) d ≤ 0 (to rounding: eps · ‖A + λI‖ · dᵀd) the matrix is not
    positive definite. The iteration stops there, x is the last iterate before it, and the result brings d.

    Args:
        A: any curvext operator, or an object with ``shape`` (P, P), ``dtype``, ``device`` and ``matvec``.
        b: ``[P]``, or ``[P, K]`` for K systems that share the passes over the data; a column that has
            converged, or met negative curvature, is frozen. Or ``{name: tensor}`` for an operator on a model's
            parameters, and ``x`` and ``negative_curvature`` are such too. Where A has ``inner`` and ``entries``, the
            entries of this process, ``[P_r]`` or ``[P_r, K]``.
        damping: λ ≥ 0, in units of A. For a shift the other way pass ``A - s * Identity(P)``.
        tol: converged when ‖b − (A + λI) x‖ ≤ tol ‖b‖; None for eps^⅔ of A's dtype (4e-11 in float64,
            2e-5 in float32, 4e-2 in bfloat16).
        maxiter: iterations at most; None for 10 P, but no more than 1000.
        x0: where to start, shaped like ``b``, or named; None for zero, which saves a product.
        preconditioner: a tensor ``[P]`` or ``{name: tensor}``, the positive diagonal of a matrix like A + λI, by
            which residuals are divided; or an operator, or a function of a vector ``[P]``, that applies an
            approximate inverse. It must be symmetric and positive definite.
        progress: show a bar (needs tqdm).
        checkpoint: a path. A state is written there every 8 iterations, and an interrupted call that is made again with
            the same arguments goes on from it.

    Returns:
        CGResult(x, residual_norm, iterations, converged, negative_curvature, curvature, products). Numbers
        for one right-hand side, tensors ``[K]`` for a block. ``residual_norm`` is measured with a product of
        its own. ``x`` is in A's dtype, in float32 for a narrower one.

    Raises:
        TypeError: an argument is of no accepted kind or dtype.
        ValueError: a shape, device or range does not fit, ``b`` or ``x0`` has nan or inf (on the CPU; on CUDA
            they come back, not converged), or the preconditioner is not positive definite.

    Cost: a product for each iteration and one to measure the residual; where vectors are sharded, also two
    reductions for each iteration. Where rounding has led the
    iteration's own residual away from the measured one, it goes on from there. Memory: five vectors for
    each right-hand side.

    Source: Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear systems.

    Example:
        >>> import torch, curvext as cx
        >>> print(cx.cg(2 * cx.Identity(3), torch.tensor([2.0, 4.0, 6.0])))
        converged: residual 0.0e+00, 1 iterations, 2 products
    """
    if isinstance(b, Mapping):
        right, back = _by_name(A, b)
        flat = cg(A, right, damping, tol, maxiter, x0, preconditioner, progress, checkpoint)
        return _in_form(flat, back)
    x0 = _flat(A, "x0", x0) if isinstance(x0, Mapping) else x0
    if isinstance(preconditioner, Mapping):
        preconditioner = _flat(A, "preconditioner", preconditioner)
    products = Products(A, "cg", like=b if isinstance(b, Tensor) else None, sharded=True)
    check_dense("cg: b", b)
    full = products.is_full(b)
    b = products.local(b)
    x0 = products.local(x0) if isinstance(x0, Tensor) else x0
    if isinstance(preconditioner, Tensor):
        preconditioner = products.local(preconditioner)
    _check(products, b, x0)
    damping = as_number(
        "cg: damping",
        damping,
        "a finite λ >= 0 (for A - sI pass that operator)",
        lambda x: 0 <= x < math.inf,
    )
    if tol is None:
        tol = torch.finfo(products.dtype).eps ** (2 / 3)
    tol = as_number("cg: tol", tol, "a finite number >= 0", lambda x: 0 <= x < math.inf)
    if maxiter is None:
        maxiter = min(10 * products.size, 1000)
    maxiter = as_integer("cg: maxiter", maxiter, 0)
    inverse = _inverse(products, preconditioner)
    products.agree()
    _check_values(products, b=b, x0=x0)
    if isinstance(preconditioner, Tensor) and products.vectors.any(~(preconditioner > 0)):
        raise ValueError(
            "cg: preconditioner: a diagonal must be positive; add the damping, or a small floor"
        )
    system = _System(products, damping, inverse)
    start = None if x0 is None else _rows(products, x0)
    solution = _Solution(system, _rows(products, b), start, tol, maxiter)
    state = Checkpoint(
        checkpoint,
        products,
        b=b,
        damping=damping,
        tol=tol,
        maxiter=maxiter,
        x0=x0,
        preconditioner=_said(preconditioner, inverse),
    )
    with Progress(progress, maxiter, "cg") as bar:
        solution.solve(state, bar)
    found = solution.result(single=b.ndim == 1)
    return _in_form(found, A.full) if full else found  # type: ignore[attr-defined]


Form = TypeVar("Form", bound=Tensor | dict[str, Tensor])


def _in_form(found: CGResult[Tensor], form: Callable[[Tensor], Form]) -> CGResult[Form]:
    """A result with its vectors in another form."""
    bent = found.negative_curvature
    return CGResult(
        form(found.x),
        found.residual_norm,
        found.iterations,
        found.converged,
        None if bent is None else form(bent),
        found.curvature,
        found.products,
    )


def _is_dtensor(t: Tensor) -> bool:
    return hasattr(t, "placements")


def _by_name(
    A: SymmetricOperator, b: Named
) -> tuple[Tensor, Callable[[Tensor], dict[str, Tensor]]]:
    """``{name: tensor}`` as a flat vector, and how a flat answer gets its form; local entries of DTensors."""
    vectors: Any = getattr(A, "local_vectors", None)
    if is_sharded(A) and vectors is not None and any(map(_is_dtensor, b.values())):
        full: Callable[[Tensor], Tensor] = A.full  # type: ignore[attr-defined]
        return A.local(b), lambda v: vectors.named(full(v))  # type: ignore[attr-defined]
    flat = _flat(A, "b", b)
    split: Callable[[Tensor], dict[str, Tensor]] = A.split  # type: ignore[attr-defined]
    return flat, split


def _flat(A: SymmetricOperator, name: str, named: Named) -> Tensor:
    """``{name: tensor}`` as the flat vector of an operator that knows the names."""
    if is_sharded(A) and any(map(_is_dtensor, named.values())):
        local: Tensor = A.local(named)  # type: ignore[attr-defined]
        return local
    flatten = getattr(A, "flatten", None)
    if flatten is None or not hasattr(A, "split"):
        raise TypeError(
            f"cg: {name}: expected a tensor, as {type(A).__name__} has no flatten and split for named ones"
        )
    vector: Tensor = flatten(named)
    return vector


def _check(products: Products, b: Tensor, x0: Tensor | None) -> None:
    for name, v in (("b", b), ("x0", x0)):
        if v is None:
            continue
        check_dense(f"cg: {name}", v)
        size = products.vectors.local
        wanted = f"[{size}] or [{size}, K]" if name == "b" else list(b.shape)
        fits = v.ndim in (1, 2) and v.shape[0] == size if name == "b" else v.shape == b.shape
        if not fits:
            raise ValueError(f"cg: {name}: expected shape {wanted}, got {list(v.shape)}")
        if v.dtype not in (products.dtype, products.working):
            raise TypeError(f"cg: {name}: expected dtype {products.dtype}, got {v.dtype}")
        if v.device != products.device:
            raise ValueError(f"cg: {name}: expected device {products.device}, got {v.device}")


def _check_values(products: Products, **vectors: Tensor | None) -> None:
    for name, v in vectors.items():
        if v is None or v.device.type != "cpu":
            continue
        if not products.vectors.all_finite(v):
            raise ValueError(f"cg: {name}: contains nan or inf")


def _rows(products: Products, b: Tensor) -> Tensor:
    """Right-hand sides as rows ``[K, P]`` of an algorithm's own."""
    columns = b.detach().unsqueeze(1) if b.ndim == 1 else b.detach()
    return columns.to(products.working).T.clone(memory_format=torch.contiguous_format)


def _inverse(
    products: Products, preconditioner: Preconditioner | None
) -> Callable[[Tensor], Tensor] | None:
    """The preconditioner as a function of residuals, rows ``[K, P]``."""
    if preconditioner is None:
        return None
    if isinstance(preconditioner, Tensor):
        check_dense("cg: preconditioner", preconditioner)
        diagonal = preconditioner.detach()
        if diagonal.shape != (products.vectors.local,):
            raise ValueError(
                f"cg: preconditioner: expected a diagonal [{products.vectors.local}], got {list(diagonal.shape)}"
            )
        if diagonal.device != products.device:
            raise ValueError(
                f"cg: preconditioner: expected device {products.device}, got {diagonal.device}"
            )
        inverse = diagonal.to(products.working).reciprocal()
        return lambda r: r * inverse
    apply = getattr(preconditioner, "matvec", preconditioner)
    if not callable(apply):
        raise TypeError(
            "cg: preconditioner: expected a diagonal [P], an operator with matvec or a function, "
            f"got {type(preconditioner).__name__}"
        )
    wants = getattr(preconditioner, "dtype", None) or products.working

    def each(r: Tensor) -> Tensor:
        z = [apply(row.to(wants)) for row in r]
        for one in z:
            if not isinstance(one, Tensor) or one.shape != r.shape[1:]:
                got = list(one.shape) if isinstance(one, Tensor) else type(one).__name__
                raise ValueError(
                    f"cg: preconditioner: returned {got} for a vector [{products.vectors.local}]"
                )
        products.agree()  # if it raised here, it raises everywhere
        return torch.stack(z).to(r.dtype)

    return each


def _said(
    preconditioner: Preconditioner | None, inverse: Callable[[Tensor], Tensor] | None
) -> Tensor | Callable[[Tensor], Tensor] | None:
    """A preconditioner as a checkpoint compares it: a diagonal, or a function of a vector."""
    if isinstance(preconditioner, Tensor) or inverse is None:
        return preconditioner if isinstance(preconditioner, Tensor) else None
    return lambda v: inverse(v.unsqueeze(0))[0]


@dataclass(frozen=True)
class _System:
    products: Products
    damping: float
    inverse: Callable[[Tensor], Tensor] | None

    def multiply(self, rows: Tensor) -> Tensor:
        """(A + λI) applied to each row of ``[K, P]``."""
        if len(rows) == 0:
            return rows.clone()
        product = multiply(self.products, rows)
        return product.add_(rows, alpha=self.damping) if self.damping else product

    def length(self, rows: Tensor) -> Tensor:
        """‖v‖ of each row, ``[K]``."""
        return self.dots((rows, rows))[0].sqrt()

    def dots(self, *pairs: tuple[Tensor, Tensor]) -> list[Tensor]:
        """⟨a, b⟩ of the rows of each pair, ``[K]``: one reduction for all of them where vectors are sharded."""
        return self.products.vectors.dots(pairs)

    def precondition(self, r: Tensor) -> Tensor:
        return r if self.inverse is None else self.inverse(r)


@dataclass
class _Iteration:
    """Conjugate gradients under way for some systems: rows ``[k, P_r]`` and numbers ``[k]``."""

    #: the systems with which it started, by number
    started: Tensor
    #: iterations since, and how many there may be
    step: int
    last: int
    #: which of the systems
    at: Tensor
    x: Tensor
    r: Tensor
    #: search directions
    p: Tensor
    #: ⟨r, M r⟩
    rho: Tensor
    #: iterations of each
    steps: Tensor
    #: ‖r‖ at which a system has converged
    target: Tensor
    #: a lower bound of ‖A + λI‖
    norm: Tensor
    #: dᵀ(A + λI) d of the unit direction where it was not positive
    bent: Tensor
    #: whether it met such a direction
    met: Tensor
    #: whether the preconditioner is not positive definite
    wrong: Tensor
    #: whether it still iterates
    live: Tensor

    def of(self, mask: Tensor) -> _Iteration:
        """The systems of a mask ``[k]``."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = ("started", "step", "last")
        return _Iteration(**{n: t if n in kept else t[mask] for n, t in parts.items()})


#: numbers of a solution that a checkpoint keeps
_KEPT = ("residual", "iterations", "negative", "curvature")
#: marks those of the iteration under way
_OF = " of the iteration"


class _Solution:
    """K systems on their way: rows ``[K, P]``, and float64 scalars ``[K]``, all on the device."""

    def __init__(
        self, system: _System, right: Tensor, x0: Tensor | None, tol: float, maxiter: int
    ) -> None:
        size = system.length(right)
        self.system = system
        self.right = right
        self.maxiter = maxiter
        self.target = tol * size
        self.x = torch.zeros_like(right) if x0 is None else x0
        self.x[size == 0] = 0  # b = 0 has the exact solution 0
        self.r = right.clone() if x0 is None else right - system.multiply(self.x)
        #: ‖b − (A + λI) x‖, measured
        self.residual = system.length(self.r)
        self.iterations = torch.zeros_like(size, dtype=torch.long)
        self.negative = torch.zeros_like(size, dtype=torch.bool)
        self.curvature = torch.full_like(size, math.nan)
        #: directions of negative curvature, unit rows ``[K, P]``, once there is one
        self.direction: Tensor | None = None

    def solve(self, state: Checkpoint, bar: Progress) -> None:
        """Runs conjugate gradients, restarted from the measured residual for as long as that makes progress."""
        now = self._restored(state)
        pending = self._unsolved()
        while now is not None or bool(pending.any()):
            if now is None:
                now = self._begun(pending.nonzero()[:, 0])
            at = now.started
            before = self.residual[at]
            self._run(now, state, bar)
            now = None
            self.r[at] = self.right[at] - self.system.multiply(self.x[at])
            self.residual[at] = self.system.length(self.r[at])
            gained = torch.zeros_like(pending)
            gained[at] = self.residual[at] <= before / 2
            pending = self._unsolved() & gained

    def _unsolved(self) -> Tensor:
        return (self.residual > self.target) & ~self.negative & (self.iterations < self.maxiter)

    def _run(self, now: _Iteration, state: Checkpoint, bar: Progress) -> None:
        """Conjugate gradients for some systems, until each has stopped by its own recurrence.

        Converged systems are masked out, and removed at the host's next check.
        """
        system, eps = self.system, torch.finfo(self.x.dtype).eps
        look_every = LOOK_EVERY.get(now.at.device.type, 1)
        for step in range(now.step + 1, now.last + 1):
            now.step = step
            q = system.multiply(now.p)
            square, curvature, image = system.dots((now.p, now.p), (now.p, q), (q, q))
            # of ‖A + λI‖ the best lower bound so far
            now.norm = torch.maximum(now.norm, (image / square).sqrt())
            flat = now.live & (curvature <= eps * now.norm * square)
            now.met, now.bent = now.met | flat, torch.where(flat, curvature / square, now.bent)
            now.live = now.live & ~flat
            size = torch.where(now.live, now.rho / curvature, 0.0).to(q.dtype).unsqueeze(1)
            now.x.addcmul_(now.p, size)
            now.r.addcmul_(q, size, value=-1)
            now.steps = now.steps + now.live
            z = system.precondition(now.r)
            residual, ahead = system.dots((now.r, now.r), (now.r, z))
            residual = residual.sqrt()
            now.live = now.live & (residual > now.target) & (now.steps < self.maxiter)
            now.wrong = now.wrong | (now.live & (ahead <= 0))
            # keep p of a stopped system: it may be the direction of negative curvature to return
            along = torch.where(now.live, ahead / now.rho, 1.0).to(q.dtype).unsqueeze(1)
            now.p.mul_(along).addcmul_(z, now.live.to(q.dtype).unsqueeze(1))
            now.rho = ahead
            if step % look_every and step < now.last:
                continue
            if bool(now.wrong.any()):
                raise ValueError(
                    "cg: preconditioner: not positive definite, <r, M r> <= 0 for a residual r"
                )
            worst = float((residual / now.target).max())
            bar.to(system.products.count, f"residual / ‖b‖ tol {worst:.1e}")
            if not bool(now.live.all()):
                out = now.of(~now.live)
                self._leave(out.at, out.x, out.steps)
                met = now.of(now.met)
                self._bent(met.at, met.p, met.bent)
                if not bool(now.live.any()):
                    return
                now = now.of(now.live)
            if state and step % SAVE_EVERY == 0 and bool(now.rho.isfinite().all()):
                self._save(now, state)

    def _begun(self, at: Tensor) -> _Iteration:
        x, r = self.x[at], self.r[at]
        z = self.system.precondition(r)
        (rho,) = self.system.dots((r, z))
        no = torch.zeros_like(rho, dtype=torch.bool)
        steps = self.iterations[at]
        return _Iteration(
            started=at,
            step=0,
            last=self.maxiter - int(steps.min()),
            at=at,
            x=x,
            r=r,
            p=z.clone(),
            rho=rho,
            steps=steps,
            target=self.target[at],
            norm=torch.zeros_like(rho),
            bent=torch.full_like(rho, math.nan),
            met=no,
            wrong=rho <= 0,
            live=~no,
        )

    def _save(self, now: _Iteration, state: Checkpoint) -> None:
        """Writes what is needed to go on from here: x, r, p and numbers."""
        x, r = self.x.clone(), self.r.clone()
        x[now.at], r[now.at] = now.x, now.r
        rows = {"x": x, "r": r, "p": now.p}
        if self.direction is not None:
            rows["direction"] = self.direction
        numbers = {name: getattr(self, name) for name in _KEPT}
        under_way = {name: value for name, value in vars(now).items() if name not in rows}
        state.save({**numbers, **{name + _OF: v for name, v in under_way.items()}}, rows)

    def _restored(self, state: Checkpoint) -> _Iteration | None:
        """The iteration that a checkpoint was in, if it has one."""
        x, r, p = (state.rows(name) for name in ("x", "r", "p"))
        if x is None or r is None or p is None:
            return None
        self.x, self.r, self.direction = x, r, state.rows("direction")
        for name in _KEPT:
            setattr(self, name, state.numbers[name].to(x.device))
        found = {
            name.removesuffix(_OF): t.to(x.device)
            for name, t in state.numbers.items()
            if name.endswith(_OF)
        }
        at = found["at"]
        step, last = int(found.pop("step")), int(found.pop("last"))
        return _Iteration(step=step, last=last, x=x[at], r=r[at], p=p, **found)

    def _leave(self, at: Tensor, x: Tensor, steps: Tensor) -> None:
        self.x[at] = x
        self.iterations[at] = steps

    def _bent(self, at: Tensor, p: Tensor, curvature: Tensor) -> None:
        """Notes the directions of negative curvature of the systems ``at``."""
        if len(at) == 0:
            return
        if self.direction is None:
            self.direction = torch.zeros_like(self.x)
        self.direction[at] = p / self.system.length(p).to(p.dtype).unsqueeze(1)
        self.curvature[at] = curvature
        self.negative[at] = True

    def result(self, single: bool) -> CGResult[Tensor]:
        """The result, with plain numbers for a single right-hand side."""
        converged = self.residual <= self.target
        count = self.system.products.count
        direction = self.direction
        if not single:
            return CGResult(
                self.x.T,
                self.residual,
                self.iterations,
                converged,
                None if direction is None else direction.T,
                self.curvature,
                count,
            )
        return CGResult(
            self.x[0],
            float(self.residual),
            int(self.iterations),
            bool(converged),
            None if direction is None else direction[0],
            float(self.curvature),
            count,
        )
