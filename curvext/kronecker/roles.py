"""The role of each parameter: a weight with its form and perhaps its bias, or part of an exact block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from curvext.gradients.convolution import ConvolutionGradient
from curvext.gradients.dense import DenseGradient
from curvext.gradients.joined import TiedGradient
from curvext.gradients.outer_product import OuterGradient
from curvext.gradients.rows import RowsGradient
from curvext.gradients.structured import StructuredGradient
from curvext.kronecker.forms import Form, form_of_convolution, form_of_matrix
from curvext.operations.view_chain import ViewChain
from curvext.per_sample.partners import Wiring
from curvext.space import ParameterSpace


class Revised(Exception):
    """Raised when a later batch shows that a parameter has no factors, so that the sums so far are void."""


@dataclass(frozen=True)
class SaidOfRoles:
    """The roles that one process found.

    Attributes:
        forms, exact, bias_of: see :class:`Roles`.
        apart: biases that do not go with one weight.
        seen: parameters that some batch uses.
    """

    forms: dict[int, Form]
    exact: dict[int, str]
    bias_of: dict[int, int]
    apart: set[int]
    seen: set[int]


def merged(said: Sequence[SaidOfRoles]) -> SaidOfRoles:
    """The roles for the data of all processes: those that one would find."""
    exact: dict[int, str] = {}
    forms: dict[int, Form] = {}
    for one in said:
        for parameter, why in one.exact.items():
            exact.setdefault(parameter, why)
        for parameter, form in one.forms.items():
            if forms.setdefault(parameter, form) != form:
                exact.setdefault(parameter, _NOT_WHOLE)
    apart: set[int] = set().union(*(one.apart for one in said))
    pairs = {(weight, bias) for one in said for weight, bias in one.bias_of.items()}
    for weight, bias in pairs:
        elsewhere = any(
            {weight, bias} & one.seen and one.bias_of.get(weight) != bias for one in said
        )
        if elsewhere or bias in exact or weight in exact:
            apart.add(bias)
    return SaidOfRoles(
        {p: form for p, form in forms.items() if p not in exact},
        exact,
        {weight: bias for weight, bias in pairs if bias not in apart},
        apart,
        set().union(*(one.seen for one in said)),
    )


def differs(one: SaidOfRoles, common: SaidOfRoles) -> bool:
    """Whether what a process has added up has another role than it had there."""
    parted = any(common.bias_of.get(weight) != bias for weight, bias in one.bias_of.items())
    return parted or not common.exact.keys().isdisjoint(one.forms)


class Roles:
    """The roles of the parameters, found during the backward pass and the same for every order of batches.

    Args:
        space: the parameters.
        joint: whether a bias joins its weight.
    """

    def __init__(self, space: ParameterSpace, joint: bool) -> None:
        self._joint = joint
        self._shapes = list(space.shapes.values())
        #: weight → how it lies, without its bias
        self.forms: dict[int, Form] = {}
        #: parameter of an exact block → why
        self.exact: dict[int, str] = {}
        #: weight → its bias
        self.bias_of: dict[int, int] = {}
        self._weight_of: dict[int, int] = {}
        self._apart: set[int] = set()
        self._revised = False
        self._seen: set[int] = set()

    def said(self) -> SaidOfRoles:
        """What this process found."""
        return SaidOfRoles(
            dict(self.forms),
            dict(self.exact),
            dict(self.bias_of),
            set(self._apart),
            set(self._seen),
        )

    def take(self, said: SaidOfRoles) -> None:
        """Adopts the roles on which all processes agree."""
        self.forms, self.exact = dict(said.forms), dict(said.exact)
        self.bias_of, self._apart = dict(said.bias_of), set(said.apart)
        self._weight_of = {bias: weight for weight, bias in said.bias_of.items()}

    def meet(self, wiring: Wiring) -> None:
        """Reads from a batch which biases belong to which weights."""
        self._seen |= wiring.used
        if not self._joint:
            return
        now, used = wiring.partners, wiring.used
        for bias, weight in list(self._weight_of.items()):
            if now.get(bias) != weight and {bias, weight} & used:
                self._part(bias)
        for bias, weight in now.items():
            if bias in self._apart or self._weight_of.get(bias) == weight:
                continue
            if bias in self.exact or weight in self.exact or weight in self.forms:
                self._apart.add(bias)
            else:
                self._weight_of[bias], self.bias_of[weight] = weight, bias

    def joined(self, parameter: int) -> bool:
        """Whether it is a bias whose gradients come with its weight's."""
        return parameter in self._weight_of

    def form(self, weight: int) -> Form:
        """The form of a weight and its bias."""
        plain = self.forms[weight]
        bias = self.bias_of.get(weight)
        return (
            Form(plain.sizes, plain.order)
            if bias is None
            else Form(plain.sizes, plain.order, 1, bias < weight)
        )

    def members(self, weight: int) -> tuple[int, ...]:
        """A weight and its bias in the order of the flat vector."""
        bias = self.bias_of.get(weight)
        return (weight,) if bias is None else tuple(sorted((weight, bias)))

    def is_factored(self, parameter: int, use: StructuredGradient, arrange: ViewChain) -> bool:
        """Whether a use is one of a weight by pairs; from now on the parameter is a weight, or exact."""
        if parameter in self.exact:
            return False
        form = _form(use, arrange, self._shapes[parameter])
        if form is not None and self.forms.setdefault(parameter, form) == form:
            return True
        self.make_exact(parameter, _why(use))
        return False

    def make_exact(self, parameter: int, why: str) -> None:
        """Gives the parameter, and its bias, an exact block."""
        if parameter in self.exact:
            return
        self.exact[parameter] = why
        self._revised |= self.forms.pop(parameter, None) is not None
        if parameter in self.bias_of:
            self._part(self.bias_of[parameter])
        if parameter in self._weight_of:
            self._part(parameter)

    def _part(self, bias: int) -> None:
        self._apart.add(bias)
        self.bias_of.pop(self._weight_of.pop(bias))
        self._revised = True  # its gradients may already have passed

    def settle(self) -> None:
        """Raises :class:`Revised` if something that was added up has another role than it had."""
        if self._revised:
            self._revised = False
            self.forms.clear()
            raise Revised


def _form(use: StructuredGradient, arrange: ViewChain, shape: torch.Size) -> Form | None:
    if isinstance(use, OuterGradient):
        return form_of_matrix(arrange, shape, use.g.shape[2], use.a.shape[2], use.transposed)
    if isinstance(use, RowsGradient):
        rows, width = use.shape
        return form_of_matrix(arrange, shape, width, rows, True)
    if isinstance(use, ConvolutionGradient):
        return form_of_convolution(arrange, shape, use.groups, use.transposed)
    return None


def _why(use: StructuredGradient) -> str:
    if isinstance(use, DenseGradient):
        return "exact: a bias of its own, a scale or another parameter that is no matrix"
    if isinstance(use, TiedGradient):
        return "exact: used in two roles, as a table and as a matrix"
    return _NOT_WHOLE


_NOT_WHOLE = "exact: not used as one whole matrix"
