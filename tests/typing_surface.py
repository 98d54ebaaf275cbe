"""Every public name as a user writes it, for ``mypy --strict``: types go in as documented and come out as stated.

Never run; see test_typing.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import curvext as cx
from curvext import kernels
from curvext.errors import NoClosedFormError

version: str = cx.__version__
model: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
loss = nn.CrossEntropyLoss()
data = (torch.randn(5, 3), torch.zeros(5, dtype=torch.long))


def own_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def a_risk() -> cx.EmpiricalRisk:
    cx.EmpiricalRisk(model, own_loss, [data, data], reduction="mean", progress=True)
    cx.EmpiricalRisk(nn.Linear(3, 4), cx.CausalLMLoss(), {"input_ids": data[0]}, chunk_outputs=64)
    cx.EmpiricalRisk(model, loss, data, params="0", cache=False, dtype=torch.float32)
    cx.EmpiricalRisk(model, loss, data, params=model, max_batches=3)
    cx.EmpiricalRisk(model, loss, data, params=["0.*", "2"], compile="inductor")
    cx.EmpiricalRisk(model, loss, data, params=lambda name, p: p.ndim == 2, check_finite=True)
    return cx.EmpiricalRisk(
        model, loss, data, forward=lambda m, batch: m(batch[0]), target=lambda batch: batch[1]
    )


def operators(risk: cx.EmpiricalRisk, v: Tensor) -> None:
    value: float = risk.value()
    gradient: Tensor = risk.gradient()
    moved: Tensor = risk.jvp(v)
    also_moved: Tensor = risk.jvp({"0.weight": v})
    pulled: Tensor = risk.vjp(moved)
    words: str = risk.explain()
    checked: cx.CheckResult = risk.check(samples=2, vectors=1, seed=0)
    rows: tuple[cx.CheckRow, ...] = checked.rows
    H: cx.HessianOperator = risk.hessian()
    G: cx.GGNOperator = risk.ggn()
    R: cx.ModelCurvatureOperator = risk.model_curvature()
    F: cx.FisherOperator = risk.fisher()
    M: cx.MCFisherOperator = risk.mc_fisher(samples=2, seed=np.int64(1).item())
    E: cx.EmpiricalFisherOperator = risk.empirical_fisher(per="sample")
    K: cx.KFACOperator = risk.kfac(kind="mc")
    EK: cx.EKFACOperator = risk.ekfac()
    S: cx.ShampooOperator = risk.shampoo()
    B: cx.BlockDiagonalOperator = risk.block_diagonal(kind="ggn")
    alone: list[cx.LinearOperator] = [
        cx.HessianOperator(model, loss, data, compile=True),
        cx.GGNOperator(model, loss, data, None, "auto", chunk_outputs=8),
        cx.ModelCurvatureOperator(model, loss, data),
        cx.FisherOperator(model, loss, data),
        cx.MCFisherOperator(model, loss, data, samples=4, seed=0, progress=False),
        cx.EmpiricalFisherOperator(model, loss, data, per="token"),
    ]
    flat: Tensor = H @ v
    named: dict[str, Tensor] = H.split(v)
    in_form = G @ named
    out: Tensor = in_form["0.weight"]
    total: cx.LinearOperator = 2 * G + H / 3 - 0.1 * cx.Identity(10) - R + sum([F, M], start=E)
    shape: tuple[int, int] = total.shape
    shapes: dict[str, torch.Size] = H.param_shapes
    dense: Tensor = total.T.to_dense()
    joined: Tensor = H.flatten(named)
    wide: Tensor = H.matmat(H.matvec(v).unsqueeze(1))
    scipy: Any = H.to_scipy()
    try:
        diagonal: Tensor = H.diagonal()
        trace: Tensor = H.trace()
    except NoClosedFormError:
        pass
    norms: Tensor = E.gradient_norms()
    gram: Tensor = E.gram()
    other: Tensor = E.gram(data)
    similarity: Tensor = E.products(v)
    mixed: Tensor = E.weighted(norms)
    solved: Tensor = E.solve(v, damping=1e-3)
    solved_by_name: Mapping[str, Tensor] = E.solve(named)
    pairs: cx.EigenResult = E.eigh(2)
    cx.save_factors(K, "factors.safetensors")
    loaded = cx.load_factors("factors.safetensors")
    print(EK @ v, S @ v, B @ v, loaded @ v)


def functions() -> None:
    diagonal: dict[str, Tensor] = cx.fisher_diagonal(
        model, loss, data, kind="mc", samples=2, seed=0, dtype=torch.float64, progress=True
    )
    also: dict[str, Tensor] = cx.ggn_diagonal(model, loss, data, params="0.*", max_batches=1)
    norms: Tensor = cx.per_sample_gradient_norms(model, loss, data, cache="auto")
    cx.save_diagonal(diagonal, "diagonal.safetensors")
    back: dict[str, Tensor] = cx.load_diagonal("diagonal.safetensors")
    cx.plot_shares(back)


def algorithms(risk: cx.EmpiricalRisk, b: Tensor, named: dict[str, Tensor]) -> None:
    G = risk.ggn()
    solved: cx.CGResult[Tensor] = cx.cg(G, b, damping=0.1, preconditioner=named)
    x: Tensor = solved.x
    by_name: dict[str, Tensor] = cx.cg(G, named, x0=named).x
    cx.cg(G + cx.Identity(10), b, preconditioner=lambda r: r)
    pairs: cx.EigenResult = cx.eigsh(2 * G, 3, which="LA", seed=1)
    values: Tensor = pairs.values
    pairs.plot()
    density: cx.Density = cx.spectral_density(G, probes=2, steps=8)
    density.plot()
    estimate: cx.Estimate = cx.trace(G, method="xtrace", probes=8)
    low, high = estimate.interval(0.9)
    ends: Tensor = torch.stack([low, high])
    cx.diagonal(G, probes=4).value.sum()
    condition: cx.ConditionNumber = cx.condition_number(G, damping=1e-3)
    ranks: list[cx.Estimate] = [cx.effective_rank(G), cx.null_space_dimension(G)]
    point: cx.CriticalPoint = cx.critical_point(risk)
    comparison: cx.Comparison = cx.compare(risk, leading=2)
    equalities: tuple[cx.Equality, ...] = comparison.equalities


def steps(risk: cx.EmpiricalRisk) -> None:
    step: cx.Step = cx.newton_step(risk, damping=1e-3)
    step = cx.gauss_newton_step(risk, x0=step.step)
    step = cx.natural_gradient_step(risk, kind="empirical")
    cx.take_step(risk, step, length=0.5)
    cx.take_step(risk, step.step)
    damping: float = step.next_damping(risk.value())
    updates: cx.DFP = cx.DFP(init_scale="auto")
    with cx.objective(risk, curvature="ggn") as functions_of_x:
        value: float = functions_of_x.fun(functions_of_x.x0)


def training(losses: Tensor) -> None:
    out = cx.backward(
        losses, model, weights=lambda n: (1 / n).clamp(max=1), norms=True, squares=True
    )
    used: Tensor = out.weights


def a_kernel(a: Tensor, g: Tensor) -> Tensor:
    with kernels.use_reference():
        return kernels.outer_square(a, g)
