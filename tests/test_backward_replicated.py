"""``curvext.backward`` under DistributedDataParallel: gradients are averaged over the ranks, as DDP does."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch import distributed as dist

ROOT = Path(__file__).resolve().parents[1]

RANK = """
import sys, torch, torch.nn.functional as F, curvext as cx
from torch import distributed as dist, nn
from torch.nn.parallel import DistributedDataParallel as DDP

rank, world, port = int(sys.argv[1]), 2, sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
y = torch.arange(8) % 3
mine = slice(4 * rank, 4 * rank + 4)


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def losses(model, where):
    return F.cross_entropy(model(x[where]), y[where], reduction="none")


def flat(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters()])


def rows(where):
    model = build()
    return torch.stack([
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(l, list(model.parameters()), retain_graph=True)])
        for l in losses(model, where)
    ])


g, own = rows(slice(None)), rows(mine)
for options in ({}, {"norms": True}, {"squares": True}):
    for unused in (False, True):
        model = DDP(build(), find_unused_parameters=unused)
        for step in range(2):  # the reducer is in step after a call
            model.zero_grad()
            out = cx.backward(losses(model, mine), model, **options)
            assert torch.allclose(flat(model), g.mean(0), atol=1e-12), (options, unused)
        assert list(out.paths) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert out.norms is None or torch.allclose(out.norms, own.norm(dim=1))

model = DDP(build())  # clipping: each rank by its own norms, then the average
clip = lambda n: (1.0 / n).clamp(max=1) / len(n)
cx.backward(losses(model, mine), model, weights=clip)
expected = sum((clip(part.norm(dim=1)) @ part) for part in (g[:4], g[4:])) / 2
assert torch.allclose(flat(model), expected, atol=1e-12)

model.zero_grad()  # the inner module's parameters are the replica's
cx.backward(losses(model, mine), model.module, norms=True)
assert torch.allclose(flat(model), g.mean(0), atol=1e-12)

model.zero_grad()  # accumulation: local without, averaged with the second
with model.no_sync():
    cx.backward(losses(model, mine), model, norms=True)
assert torch.allclose(flat(model), own.mean(0), atol=1e-12)
cx.backward(losses(model, mine), model, norms=True)
assert torch.allclose(flat(model), 2 * g.mean(0), atol=1e-12)

model = DDP(build(), static_graph=True)
try:
    cx.backward(losses(model, mine), model, norms=True)
except ValueError as error:
    assert "static_graph" in str(error)
else:
    raise AssertionError("static_graph was taken")
dist.destroy_process_group()
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_gradients_under_ddp_are_averaged_over_the_ranks(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    port = str(free_port())
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), port],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    for rank, error in zip(ranks, errors, strict=True):
        assert rank.returncode == 0, error
