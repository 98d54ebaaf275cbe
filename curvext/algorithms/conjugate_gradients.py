"""Conjugate gradients for several systems at once, and their state on disk.

One file because the recurrence, the masking of converged columns and the exits are one algorithm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from curvext.algorithms.checkpoint import Checkpoint
from curvext.algorithms.linear_system import System
from curvext.progress import Progress
from curvext.results import CGResult

#: by device, iterations between two checks by the host of which systems still run: on CUDA each check synchronises
LOOK_EVERY = {"cpu": 1, "cuda": 8}

#: iterations between two states on disk
SAVE_EVERY = 8


@dataclass
class Iteration:
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

    def of(self, mask: Tensor) -> Iteration:
        """The systems of a mask ``[k]``."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = ("started", "step", "last")
        return Iteration(**{n: t if n in kept else t[mask] for n, t in parts.items()})


#: numbers that a checkpoint keeps: of the solution, and of the iteration under way
_KEPT = ("residual", "iterations", "negative", "curvature")
_UNDER_WAY = ("started", "step", "last", "at", "rho", "steps", "norm")


class Solution:
    """K systems on their way: rows ``[K, P]``, and float64 scalars ``[K]``, all on the device."""

    def __init__(
        self, system: System, right: Tensor, x0: Tensor | None, tol: float, maxiter: int
    ) -> None:
        size = system.length(right)
        self.system = system
        self.right = right
        self.maxiter = maxiter
        self.target = tol * size
        self.x = torch.zeros_like(right) if x0 is None else x0
        self.x[size == 0] = 0  # b = 0 has the exact solution 0
        self._from_zero = x0 is None
        self.r = right.clone()
        #: ‖b − (A + λI) x‖, measured
        self.residual = size
        self.iterations = torch.zeros_like(size, dtype=torch.long)
        self.negative = torch.zeros_like(size, dtype=torch.bool)
        self.curvature = torch.full_like(size, math.nan)
        #: directions of negative curvature, unit rows ``[K, P]``, once there is one
        self.direction: Tensor | None = None

    def solve(self, state: Checkpoint, bar: Progress) -> None:
        """Runs conjugate gradients, restarted from the measured residual for as long as that makes progress."""
        now = self._restored(state)
        if now is None and not self._from_zero:
            self.r -= self.system.multiply(self.x)
            self.residual = self.system.length(self.r)
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

    def _run(self, now: Iteration, state: Checkpoint, bar: Progress) -> None:
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

    def _begun(self, at: Tensor) -> Iteration:
        x, r = self.x[at], self.r[at]
        z = self.system.precondition(r)
        (rho,) = self.system.dots((r, z))
        steps = self.iterations[at]
        last = self.maxiter - int(steps.min())
        return self._live(x, r, z.clone(), at, 0, last, at, rho, steps, torch.zeros_like(rho))

    def _live(
        self,
        x: Tensor,
        r: Tensor,
        p: Tensor,
        started: Tensor,
        step: int,
        last: int,
        at: Tensor,
        rho: Tensor,
        steps: Tensor,
        norm: Tensor,
    ) -> Iteration:
        """An iteration of systems all of which go on."""
        no = torch.zeros_like(rho, dtype=torch.bool)
        return Iteration(
            started=started,
            step=step,
            last=last,
            at=at,
            x=x,
            r=r,
            p=p,
            rho=rho,
            steps=steps,
            target=self.target[at],
            norm=norm,
            bent=torch.full_like(rho, math.nan),
            met=no,
            wrong=rho <= 0,
            live=~no,
        )

    def _save(self, now: Iteration, state: Checkpoint) -> None:
        """Writes what is needed to go on from here, where all systems under way are live."""
        x = self.x.clone()
        x[now.at] = now.x
        rows = {"x": x, "r": now.r, "p": now.p}
        if self.direction is not None:
            rows["direction"] = self.direction
        numbers = {name: getattr(self, name) for name in _KEPT}
        state.save({**numbers, **{name: getattr(now, name) for name in _UNDER_WAY}}, rows)

    def _restored(self, state: Checkpoint) -> Iteration | None:
        """The iteration that a checkpoint was in, if it has one."""
        x, r, p = (state.rows(name) for name in ("x", "r", "p"))
        if x is None or r is None or p is None:
            return None
        # the residuals of the others are not asked for again
        self.x, self.direction = x, state.rows("direction")
        for name in _KEPT:
            setattr(self, name, state.numbers[name].to(x.device))
        started, step, last, at, *numbers = (state.numbers[n].to(x.device) for n in _UNDER_WAY)
        return self._live(x[at], r, p, started, int(step), int(last), at, *numbers)

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
