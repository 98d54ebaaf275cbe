"""All that a risk answers, by name."""

from __future__ import annotations

import torch

import curvext as cx


def answers(posed, data, loss_name, group=None, **options):
    """All that a risk answers."""
    risk = cx.EmpiricalRisk(posed.model, posed.loss, data, process_group=group, **options)
    V = posed.vectors()
    H, G, R, E = risk.hessian(), risk.ggn(), risk.model_curvature(), risk.empirical_fisher()
    found = {
        "value": torch.tensor(risk.value(), dtype=torch.float64),
        "gradient": risk.gradient(),
        "H": H @ V,
        "G": G @ V[:, 0],
        "R": R @ V,
        "2H + G": (2 * H + G - cx.Identity(len(V))) @ V,
        "by name": G.flatten(G @ G.split(V[:, 1])),
        "E": E @ V,
        "diag E": E.diagonal(),
        "tr E": E.trace(),
        "norms": E.gradient_norms(),
        "gram": E.gram(),
        "solve": E.solve(V, damping=0.1),
        "eigh": E.eigh(1).values,
        "norms by function": cx.per_sample_gradient_norms(
            posed.model, posed.loss, data, process_group=group
        ),
        "diag E by function": E.flatten(
            cx.fisher_diagonal(posed.model, posed.loss, data, process_group=group)
        ),
        "diag G": G.diagonal(),
        "tr G": G.trace(),
        "diag G by function": G.flatten(
            cx.ggn_diagonal(posed.model, posed.loss, data, process_group=group)
        ),
    }
    if loss_name != "custom":
        M = risk.mc_fisher(samples=2, seed=3)
        found |= {
            "F": risk.fisher() @ V,
            "M": M @ V,
            "diag M": M.diagonal(),
            "tr M": M.trace(),
            "diag M by function": G.flatten(
                cx.fisher_diagonal(
                    posed.model, posed.loss, data, "mc", samples=2, seed=3, process_group=group
                )
            ),
        }
    if loss_name.startswith("ce"):
        T = risk.empirical_fisher(per="token")
        found |= {"T": T @ V, "diag T": T.diagonal(), "tr T": T.trace()}
    return found
