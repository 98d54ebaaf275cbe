"""Each short example runs as a program, and its own assertion finds the benefit it claims."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: what a script needs beyond the extra "demo"
NEEDS = {"trainer_callback": ("transformers", "accelerate")}
#: a script, and what the last line of its output says
SCRIPTS = {
    "continual_learning": "Consolidation in the loop keeps",
    "data_selection": "Gradient norm beside chance: +",
    "elastic_weight_consolidation": "The exact Fisher keeps",
    "kfac_training": "K-FAC's loss is 10^",
    "label_errors": "Influence finds",
    "laplace_posterior": "Laplace lowers the calibration error by",
    "lora_selection": "Chosen by the adapters' gradients: +",
    "noise_scale": "The batch that pays grows from",
    "private_training": "Private steps take",
    "fisher_quantisation": "Weighted by Fisher, k-means changes predictions by",
    "trainer_callback": "The callback keeps",
    "fisher_merging": "Exact Fisher over plain average: +",
    "fisher_pruning": "Up to 80%, Fisher is",
    "second_order_training": "After 600 gradients' work Gauss-Newton's loss is 10^",
}


def run(script: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One seed, in a foreign folder, with warnings as errors; nothing may be left there."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error::UserWarning",
            ROOT / "examples" / f"{script}.py",
            *arguments,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )
    assert not list(folder.iterdir()), "the example leaves files behind"
    return done


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_example_shows_the_benefit_it_claims(script, tmp_path):
    for package in NEEDS.get(script, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    done = run(script, tmp_path, "--seeds", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith(SCRIPTS[script])
    assert not done.stderr, "no progress bar, and no warning, where there is no terminal"


def test_an_example_fails_where_its_benefit_is_absent(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(planted(tmp_path / "planted")))
    (tmp_path / "empty").mkdir()
    done = run("fisher_merging", tmp_path / "empty", "--seeds", "1")
    assert done.returncode != 0
    assert "AssertionError: merging by the Fisher matrix shows no benefit" in done.stderr


def planted(folder: Path) -> Path:
    """A ``sitecustomize`` by which every diagonal comes out as ones: merging becomes the plain average."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import torch, curvext\n"
        "curvext.fisher_diagonal = lambda model, *_, **__: {\n"
        "    n: torch.ones_like(p) for n, p in model.named_parameters()\n"
        "}\n"
    )
    return folder
