"""Threads that share a model, or a risk: each gets its own answer, and the model is left as found."""

from __future__ import annotations

import threading

import pytest
import torch
from compare import assert_close
from torch import nn

import curvext as cx

ROUNDS = 30


def in_threads(*jobs):
    """Runs each job again and again beside the others; all that they gave, or the first error."""
    found = [[] for _ in jobs]
    errors = []
    start = threading.Barrier(len(jobs))

    def run(job, answers):
        try:
            start.wait(30)
            for _ in range(ROUNDS):
                answers.append(job())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in zip(jobs, found, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise errors[0]
    return found


@pytest.fixture
def posed():
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).double()
    return model, nn.CrossEntropyLoss(), (torch.randn(16, 20).double(), torch.randint(5, (16,)))


@pytest.mark.parametrize("cache", ["auto", False])
def test_h_and_r_of_one_risk_in_two_threads_are_not_exchanged(posed, cache, one_thread):
    risk = cx.EmpiricalRisk(*posed, cache=cache)
    H, R, G = risk.hessian(), risk.model_curvature(), risk.ggn()
    v = torch.randn(risk.space.size).double()
    expected = [H @ v, R @ v, G @ v, risk.gradient()]
    found = in_threads(lambda: H @ v, lambda: R @ v, lambda: G @ v, risk.gradient)
    for answers, right in zip(found, expected, strict=True):
        assert len(answers) == ROUNDS
        for answer in answers:
            assert_close(answer, right)


def test_risks_of_one_model_by_different_parameters_do_not_meet(posed, one_thread):
    model, loss, data = posed
    flags = [p.requires_grad for p in model.parameters()]
    first = cx.EmpiricalRisk(model, loss, data, params="0.*", cache=False)
    second = cx.EmpiricalRisk(model, loss, data, params="2.*", cache=False)
    v, w = (torch.randn(r.space.size).double() for r in (first, second))
    expected = [first.hessian() @ v, second.empirical_fisher() @ w]
    found = in_threads(lambda: first.hessian() @ v, lambda: second.empirical_fisher() @ w)
    for answers, right in zip(found, expected, strict=True):
        for answer in answers:
            assert_close(answer, right)
    assert [p.requires_grad for p in model.parameters()] == flags


def test_switches_come_back_whichever_thread_leaves_last(posed, one_thread):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.r, self.h = nn.LSTM(4, 3, batch_first=True), nn.Linear(3, 5)

        def forward(self, x):
            return self.h(self.r(x.view(len(x), 5, 4))[0][:, -1])

    before = (torch.backends.mkldnn.enabled, torch.backends.cudnn.deterministic)
    _, loss, (x, y) = posed
    risks = [cx.EmpiricalRisk(Recurrent(), loss, (x.float(), y), cache=False) for _ in range(2)]
    v = torch.randn(risks[0].space.size)
    expected = [r.hessian() @ v for r in risks]
    found = in_threads(*[lambda r=r: r.hessian() @ v for r in risks])
    for answers, right in zip(found, expected, strict=True):
        for answer in answers:
            assert_close(answer, right)
    assert (torch.backends.mkldnn.enabled, torch.backends.cudnn.deterministic) == before
