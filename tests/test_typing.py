"""The public surface is typed: mypy in its strictest mode passes on a file that uses every name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import curvext as cx

SURFACE = Path(__file__).parent / "typing_surface.py"


def mypy(file: Path, folder: Path) -> str:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports"]
    # of an installed package mypy says nothing; here it lies beside, so errors inside of it are left to `make check`
    command += ["--follow-imports", "silent"]
    command += ["--config-file", os.devnull, "--cache-dir", str(folder), str(file)]
    environment = {**os.environ, "MYPYPATH": str(Path(cx.__file__).parents[1])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_mypy_in_strict_mode_passes_on_every_public_name(tmp_path):
    # one cache for both, as reading torch takes a minute
    assert mypy(SURFACE, tmp_path).startswith("Success")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import torch, curvext as cx\n"
        "from torch import nn\n"
        "risk = cx.EmpiricalRisk(nn.Linear(2, 1), nn.MSELoss(), (), progres=True)\n"
        "x: int = cx.cg(risk.ggn(), torch.ones(3)).x\n"
        "cx.fisher_diagonal(nn.Linear(2, 1), nn.MSELoss(), (), chunk_outputs='all')\n"
    )
    lines = re.findall(r"wrong.py:(\d+): error", mypy(wrong, tmp_path))
    assert set(lines) == {"3", "4", "5"}


def test_the_surface_has_every_public_name():
    text = SURFACE.read_text(encoding="utf-8")
    assert [name for name in cx.__all__ if f"cx.{name}" not in text] == []


def test_the_package_says_that_it_is_typed():
    assert (Path(cx.__file__).parent / "py.typed").is_file()
