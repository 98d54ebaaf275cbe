"""Random networks of PyTorch's operations: every answer is right, or refused with a reason (see fuzz.py)."""

from __future__ import annotations

import pytest
import torch
from fuzz import Outcome, Spec, is_refusal, report, shrunk, tried
from fuzzed_steps import STEPS
from torch import nn

import curvext as cx
from curvext.gradients.outer_product import OuterGradient
from curvext.problem.freshness import Freshness

pytestmark = pytest.mark.usefixtures("one_thread")

#: networks of one test
BLOCK = 20


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "first" in metafunc.fixturenames:
        count, seed = (metafunc.config.getoption(name) for name in ("--fuzz", "--fuzz-seed"))
        metafunc.parametrize("first", range(seed, seed + count, BLOCK))


def test_every_answer_is_right_or_refused(first: int, request: pytest.FixtureRequest) -> None:
    last = request.config.getoption("--fuzz-seed") + request.config.getoption("--fuzz")
    specs = [Spec.drawn(seed) for seed in range(first, min(first + BLOCK, last))]
    outcomes = [tried(spec) for spec in specs]
    wrong = [spec for spec, outcome in zip(specs, outcomes, strict=True) if outcome.faults]
    assert not wrong, "\n".join(report(spec) for spec in wrong)
    assert sum(outcome.right for outcome in outcomes) > 0


@pytest.mark.parametrize("name", STEPS)
def test_each_step_by_itself_is_right_or_refused(name: str) -> None:
    spec = Spec(4, ((0, "linear_tanh"), (1, name)), "flat", "ce_weight", "mean", (3, 2), "*")
    outcome = tried(spec)
    assert not outcome.faults, report(spec)
    assert outcome.right > 0, "nothing was compared"


@pytest.mark.parametrize(
    "steps",
    [
        # J v by double backward, for want of a tangent, through attention that has no second derivative
        ("fused_attention", "custom_function"),
        ("custom_function", "multi_head_attention"),
        # a value of one sample that all others use, derived through what other samples pass
        ("loop_over_samples", "first_to_all"),
        # where samples lie in a complex gradient
        ("complex_filter", "linear"),
    ],
)
def test_what_was_found_stays_mended(steps: tuple[str, ...]) -> None:
    spec = Spec(3, tuple(enumerate(steps)), "mean", "mse", "mean", (2, 3), "*")
    assert not tried(spec).faults, report(spec)
    assert tried(spec).right > 0 and not tried(spec).refusals


# ---------------------------------------------------------------------- the fuzzer itself


def test_a_planted_fault_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    right = OuterGradient.square
    monkeypatch.setattr(OuterGradient, "square", lambda self: right(self) * 1.001)
    spec = Spec(0, ((0, "silu"), (1, "linear"), (2, "softplus")), "flat", "ce", "sum", (2, 3), "*")
    assert ("at first", "diag F_emp") in {(when, name) for when, name, _ in tried(spec).faults}
    small = shrunk(spec)
    assert small.steps == () and small.sizes == (2,) and small.loss == "mse"
    assert "seed 0: silu → linear → softplus" in report(spec) and "relative error" in report(spec)


def test_a_stale_answer_after_a_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right, first = Freshness._read, {}
    blind = lambda self, casts: first.setdefault(self, right(self, casts))  # noqa: E731
    monkeypatch.setattr(Freshness, "_read", blind)
    spec = Spec(0, ((0, "linear"),), "flat", "ce", "mean", (3,), "*")
    assert {when for when, _, _ in tried(spec).faults} == {"after a step"}


def test_only_the_librarys_own_errors_are_refusals() -> None:
    data = (torch.randn(2, 3), torch.randint(3, (2,)))
    for model, refused in ((nn.Dropout(0.5), True), (nn.Linear(4, 3), False)):
        network = nn.Sequential(nn.Linear(3, 3), model)
        with pytest.raises(RuntimeError) as caught:
            cx.EmpiricalRisk(network, nn.CrossEntropyLoss(), data).gradient()
        assert is_refusal(caught.value) is refused


def test_the_networks_are_those_of_their_seeds() -> None:
    assert Spec.drawn(7) == Spec.drawn(7) != Spec.drawn(8)
    met = {name for seed in range(400) for _, name in Spec.drawn(seed).steps}
    assert met == set(STEPS)
    assert isinstance(tried(Spec.drawn(7)), Outcome)
