"""The command line and the example on several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import curvext as cx
from curvext.__main__ import main

ROOT = Path(__file__).resolve().parents[2]

MODULE = """
import torch, torch.distributed as dist, curvext as cx

def risk(group=None, shard=slice(None)):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)).double()
    x, y = torch.randn(11, 3).double(), torch.randint(2, (11,))
    return cx.EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x[shard], y[shard]), process_group=group)

def of_all():
    return risk(dist.group.WORLD, slice(dist.get_rank(), None, dist.get_world_size()))
"""


def reported(rank, world, folder):
    sys.path.insert(0, folder)
    main(
        [
            "report",
            "posed:of_all",
            "-o",
            f"{folder}/of-{rank}.json",
            "--steps",
            "8",
            "--probes",
            "4",
        ]
    )
    assert dist.is_initialized(), "a group that was there before is left"
    sys.path.remove(folder)


@pytest.mark.parametrize("ranks", [2], indirect=True)
def test_the_report_of_several_processes_is_that_of_the_union_and_written_once(
    ranks, tmp_path, monkeypatch, capsys
):
    (tmp_path / "posed.py").write_text(MODULE)
    ranks.run(reported, str(tmp_path))
    assert [p.name for p in tmp_path.glob("of-*.json")] == ["of-0.json"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    main(["report", "posed:risk", "-o", "one.json", "--steps", "8", "--probes", "4"])
    several, one = (json.loads((tmp_path / n).read_text()) for n in ("of-0.json", "one.json"))
    assert several["samples"] == one["samples"] == 11
    assert several["machine"]["processes"] == "2" and "processes" not in one["machine"]
    for name in ("smallest", "largest", "gradient_norm"):
        assert several["point"][name] == pytest.approx(one["point"][name], rel=1e-9)
    assert several["densities"].keys() == one["densities"].keys()

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit):
        main(["report", "posed:risk", "-o", "refused.json"])
    assert "2 were started" in capsys.readouterr().err
    assert not (tmp_path / "refused.json").exists()


def test_the_spectrum_of_a_gpt_on_two_processes_is_that_of_one(tmp_path):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *starter, str(ROOT / "examples/gpt_spectrum.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("One process with all sequences has the same eigenvalues")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- two GPUs


def on_gpus(rank, world, meeting):
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=meeting, rank=rank, world_size=world)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(9, 30), torch.nn.Tanh(), torch.nn.Linear(30, 5))
    x, y = torch.randn(23, 9).double(), torch.randint(5, (23,))
    model, x, y = model.double().to(rank), x.to(rank), y.to(rank)
    loss = torch.nn.CrossEntropyLoss()
    H = cx.HessianOperator(model, loss, (x[rank::2], y[rank::2]), process_group=dist.group.WORLD)
    found = cx.eigsh(H, 2, "LA", ncv=12, checkpoint=None).values
    alone = cx.eigsh(cx.HessianOperator(model, loss, (x, y)), 2, "LA", ncv=12).values
    torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)
    dist.destroy_process_group()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two GPUs")
def test_two_gpus_by_nccl(tmp_path):
    torch.multiprocessing.spawn(on_gpus, args=(2, f"file://{tmp_path}/meeting"), nprocs=2)
