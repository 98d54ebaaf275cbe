"""From passes over the data to blocks: the sums of each weight, and exact blocks for all else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from curvext.dtypes import dtype_of_sums
from curvext.gradients.convolution import ConvolutionGradient
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.rows import RowsGradient
from curvext.gradients.structured import StructuredGradient
from curvext.kronecker.blocks import Block, DenseBlock, DiagonalBlock, Factors, Place
from curvext.kronecker.exact import ExactSum
from curvext.kronecker.forms import Form
from curvext.kronecker.over_ranks import agreed_sums
from curvext.kronecker.pairs import MatrixPairs, Pairs
from curvext.kronecker.patches import ConvolutionPairs
from curvext.kronecker.roles import Revised, Roles
from curvext.kronecker.sums import EigenvalueSum, LayerSum
from curvext.kronecker.tables import TablePairs
from curvext.kronecker.target import Target
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.partners import Wiring
from curvext.problem import Problem
from curvext.processes import Group
from curvext.space import ParameterSpace

#: (place, form, factors) → the block of a weight
BlockOf = Callable[[Place, Form, Factors], Block]
#: (pairs, form) → the sums of a weight
SumOf = Callable[[Pairs, Form], LayerSum]

_FORMED = "exact: its gradients come sample by sample (risk.explain() names the path)"
_UNREACHED = "zero: the loss does not reach it"


def factored_blocks(
    problem: Problem,
    target: Target,
    joint: bool,
    max_dim: int,
    sum_of: SumOf,
    block_of: BlockOf,
    record: bool = False,
) -> list[Block]:
    """The blocks of all parameters: ``block_of`` the factors of each weight, exact ones of the rest.

    ``record``: whether gradients are recorded for a second pass, where the cache keeps anything.
    """
    roles = Roles(problem.space, joint)
    while True:
        with problem.call(target.saying("factors")) as rounds:
            for _ in rounds:
                collector = _collected(problem, target, roles, max_dim, sum_of, record)
        if collector.agree(problem.group):
            return collector.blocks(target, problem, block_of)


def _collected(
    problem: Problem, target: Target, roles: Roles, max_dim: int, sum_of: SumOf, record: bool
) -> _Collector:
    """The sums over this process's data."""
    while True:
        collector = _Collector(problem.space, roles, max_dim, sum_of)
        try:
            target.visit(problem, collector, record)
            roles.settle()
        except Revised:
            continue  # roles only ever turn from factors to exact, so that this ends
        return collector


class _Collector:
    """A consumer that adds up factors and exact blocks."""

    def __init__(self, space: ParameterSpace, roles: Roles, max_dim: int, sum_of: SumOf) -> None:
        self._space = space
        self._roles = roles
        self._sum_of = sum_of
        self._sums: dict[int, LayerSum] = {}
        self._exact = ExactSum(space, max_dim)
        self._last = False

    def meet(self, wiring: Wiring) -> None:
        self._roles.meet(wiring)
        self._roles.settle()

    def begin(self, samples: int, sign: float, last: bool) -> None:
        self._last = last
        self._exact.begin(samples, sign)

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        if self._roles.joined(parameter):
            return
        if not self._roles.is_factored(parameter, use, arrange):
            self._expect(parameter)
            self._exact.use(parameter, use, arrange)
            return
        pairs = pairs_of(use, parameter in self._roles.bias_of)
        if parameter not in self._sums:
            self._sums[parameter] = self._sum_of(pairs, self._roles.form(parameter))
        self._sums[parameter].add(pairs, self._last)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        self._roles.make_exact(parameter, _FORMED)
        self._expect(parameter)
        self._exact.gradient(parameter, sample, gradient)

    def _expect(self, parameter: int) -> None:
        if not self._exact.expects(parameter):
            self._exact.expect((parameter,))

    def end(self) -> None:
        self._exact.end()

    def agree(self, group: Group) -> bool:
        """Adds up over the ranks of a group; False where roles turned out to be others, and a new pass is needed."""
        if group.alone:
            return True
        sums = agreed_sums(group, self._roles, self._sums, self._exact, self._space.device)
        if sums is not None:
            self._sums = sums
        return sums is not None

    def blocks(self, target: Target, problem: Problem, block_of: BlockOf) -> list[Block]:
        scale = target.scale(problem)
        found: dict[int, Block] = {}
        taken: set[int] = set()
        for weight, layer in self._sums.items():
            members = self._roles.members(weight)
            taken.update(members)
            form = self._roles.form(weight)
            found[members[0]] = block_of(place_of(problem, members), form, layer.factors(scale))
        for p in range(len(self._space.names)):
            if p not in taken:
                why = self._roles.exact.get(p, "")
                found[p] = exact_block(problem, self._exact, (p,), scale, target, why)
        return [found[p] for p in sorted(found)]


def exact_block(
    problem: Problem,
    exact: ExactSum,
    members: tuple[int, ...],
    scale: float,
    target: Target,
    why: str,
) -> Block:
    """The exact block over some parameters, or its diagonal where it is too large."""
    place, space = place_of(problem, members), problem.space
    if not any(exact.expects(p) for p in members):
        zeros = torch.zeros(place.size, dtype=dtype_of_sums(space.dtype), device=space.device)
        return DiagonalBlock(place, zeros, _UNREACHED)
    if not exact.is_dense(members):
        why = f"the diagonal of its exact block, which is over max_dim; {why}" if why else ""
        return DiagonalBlock(place, exact.diagonal(members, scale), why)
    matrix = exact.matrix(members, scale)
    if matrix is None:
        matrix = torch.zeros(
            place.size, place.size, dtype=dtype_of_sums(space.dtype), device=space.device
        )
    return DenseBlock(place, matrix, target.semidefinite, why)


def with_eigenvalues(
    problem: Problem,
    target: Target,
    blocks: Sequence[Block],
    block_of: Callable[[Block, EigenvalueSum, float], Block],
    complete: bool,
) -> list[Block]:
    """The blocks with Λ, the exact diagonal in the eigenbasis of those that are Kronecker products.

    ``complete``: whether Λ need not be zero outside the ranges of the factors.
    """
    names = list(problem.space.names)
    kronecker = {i: block for i, block in enumerate(blocks) if block.structure == "kronecker"}
    bases = {
        i: block.spectral.completed() if complete else block.spectral
        for i, block in kronecker.items()
    }
    weight_of = {
        i: names.index(block.params[-1 if block.form.bias_first else 0])
        for i, block in kronecker.items()
    }
    biased = {weight_of[i]: bool(block.form.bias) for i, block in kronecker.items()}
    with problem.call(target.saying("eigenvalues")) as rounds:
        for _ in rounds:
            sums = {i: EigenvalueSum(basis) for i, basis in bases.items()}
            target.visit(problem, _Rotator({weight_of[i]: s for i, s in sums.items()}, biased))
    problem.group.sum_all([found.values for found in sums.values()])
    scale = target.scale(problem)
    return [
        block_of(block, sums[i], scale) if i in sums else block for i, block in enumerate(blocks)
    ]


class _Rotator:
    """A consumer that adds up Λ."""

    def __init__(self, sums: dict[int, EigenvalueSum], biased: dict[int, bool]) -> None:
        self._sums = sums
        self._biased = biased

    def meet(self, wiring: Wiring) -> None:
        pass

    def begin(self, samples: int, sign: float, last: bool) -> None:
        pass

    def use(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> None:
        if parameter in self._sums:
            self._sums[parameter].add(pairs_of(use, self._biased[parameter]), False)

    def gradient(self, parameter: int, sample: int, gradient: Tensor) -> None:
        pass

    def end(self) -> None:
        pass


def pairs_of(use: StructuredGradient, bias: bool) -> Pairs:
    """The pairs of a use that has them; with a bias its a are extended by 1."""
    if isinstance(use, OuterGradient):
        return MatrixPairs(use, bias)
    if isinstance(use, ConvolutionGradient):
        return ConvolutionPairs(use, bias)
    assert isinstance(use, RowsGradient)
    return TablePairs(use)


def place_of(problem: Problem, members: Sequence[int]) -> Place:
    """Where the block over some parameters stands."""
    space = problem.space
    ends = list(accumulate(space.sizes))
    slices = tuple(slice(ends[p] - space.sizes[p], ends[p]) for p in members)
    return Place(tuple(space.names[p] for p in members), slices, problem.dtype)
