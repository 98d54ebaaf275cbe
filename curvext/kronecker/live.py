"""The base class of block-diagonal operators that follow a model and keep their blocks until it changes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from curvext.arguments import as_choice, as_integer
from curvext.kronecker.blocks import Block
from curvext.kronecker.factored import BlockOperator
from curvext.kronecker.target import Target
from curvext.problem import Problem
from curvext.processes import Saying
from curvext.space import Selection

if TYPE_CHECKING:
    from typing_extensions import Self  # typing.Self needs Python 3.11

#: the largest symmetric matrix that is formed, where nothing else is said
MAX_DIM = 8192
#: names of the arguments of :meth:`LiveBlocks._choose_matrix`
COMMON = ("kind", "samples", "seed", "max_dim")


@dataclass(frozen=True)
class KeptNow:
    """The blocks of the current model."""

    blocks: list[Block]

    def nbytes(self) -> int:
        """Bytes that they hold, eigenbases included."""
        return sum(block.nbytes() for block in self.blocks)


class LiveBlocks(BlockOperator):
    """A block-diagonal matrix of an empirical risk, recomputed when the model has changed.

    Args:
        model, loss, data, params, cache: see :class:`curvext.EmpiricalRisk`. With ``cache=False`` nothing is kept, so
            that every call makes the blocks anew; keep what ``inverse`` or ``power`` returns.
        options: those of the class, and further arguments of :class:`curvext.EmpiricalRisk`.
    """

    #: names of the arguments that are the operator's own and not the risk's
    own: tuple[str, ...]

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Callable[[Tensor, Tensor], Tensor],
        data: Any,
        params: Selection = None,
        cache: bool | str | int = "auto",
        **options: Any,
    ) -> None:
        # what is left of the options is a risk's
        mine = {name: options.pop(name) for name in self.own if name in options}
        problem = Problem(model, loss, data, params, cache, **options)
        with problem.group.guarded():
            self._begin(problem, **mine)

    @classmethod
    def of(cls, problem: Problem, **options: Any) -> Self:
        """The operator of a problem that exists already; it shares what is kept.

        Raises:
            TypeError: an argument is not of the operator's own.
        """
        for name in options:
            if name not in cls.own:
                raise TypeError(
                    f"{cls.__name__}: there is no argument {name!r} beside a risk's own; it takes {', '.join(cls.own)}"
                )
        operator = cls.__new__(cls)
        with problem.group.guarded():
            operator._begin(problem, **options)
        return operator

    def _begin(self, problem: Problem, **options: Any) -> None:
        self._problem = problem
        self.group = problem.group
        self._take_space(problem.space, problem.dtype)
        self.check_finite = problem.check_finite
        self.local_vectors = problem.local_vectors
        self._choose(**options)

    @abstractmethod
    def _choose(self, **options: Any) -> None:
        """Checks and stores the operator's own arguments; passes :data:`COMMON` to :meth:`_choose_matrix`."""

    def _choose_matrix(
        self,
        kinds: tuple[str, ...],
        kind: str = "mc",
        samples: int = 1,
        seed: int = 0,
        max_dim: int = MAX_DIM,
    ) -> None:
        """Checks and takes which matrix M it is of, and how large a matrix is formed."""
        owner = type(self).__name__
        self._target = Target.checked(owner, self._problem, kind, samples, seed, kinds)
        self._max_dim = as_integer(f"{owner}: max_dim", max_dim, 1)

    def _choice(self, name: str, value: str, allowed: tuple[str, ...]) -> str:
        return as_choice(f"{type(self).__name__}: {name}", value, allowed)

    def _own_problem(self) -> Problem | None:
        return self._problem

    @abstractmethod
    def _key(self) -> Hashable:
        """Equal for operators of one risk that have equal blocks."""

    @abstractmethod
    def _make(self) -> list[Block]:
        """The blocks of the current model, by passes over the data."""

    def _now(self, what: str, vectors: Sequence[Tensor] = ()) -> Sequence[Block]:
        key = self._key()
        saying = Saying(f"{type(self).__name__}.{what}, {key}", vectors)
        kept = self._problem.derived(key, lambda: KeptNow(self._make()), saying)
        return kept.blocks

    def identity(self) -> dict[str, Any]:
        """Which blocks they are, and of what model, loss and data; reads the data once."""
        return {
            "the operator": f"{type(self).__name__}, {self._key()}",
            **self._problem.identity(),
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}(P={self.size}, {self.dtype}, {self.device})"
