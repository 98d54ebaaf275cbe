"""What tools/gpu.sh would run on a GPU, checked without one."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from curvext import kernels

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools" / "gpu.sh"
SOURCE = ROOT / "tools" / "direct_calls.py"
specification = importlib.util.spec_from_file_location("direct_calls", SOURCE)
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)


def shards() -> list[list[Path]]:
    """The test files of each process."""
    listed = re.search(r"SHARDS=\(\n(.*?)\n\)", SCRIPT.read_text(), re.DOTALL)
    assert listed
    found = []
    for line in re.findall(r'"([^"]+)"', listed[1]):
        words = re.sub(r"--deselect \S+", "", line).split()
        files = [path for word in words for path in sorted(ROOT.glob(word))]
        assert all(list(ROOT.glob(word)) for word in words), f"{line}: no such file"
        found.append(
            [f for path in files for f in ([path] if path.is_file() else path.glob("test_*.py"))]
        )
    return found


def test_every_file_with_tests_of_a_device_runs_once():
    run = [path for files in shards() for path in files]
    twice = {path.name for path in run if run.count(path) > 1}
    assert not twice, f"run by two processes: {twice}"
    asks = re.compile(r"^def test_\w+\([^)]*\bdevice\b", re.MULTILINE)
    wanted = {path for path in ROOT.glob("tests/**/test_*.py") if asks.search(path.read_text())}
    missing = {str(path.relative_to(ROOT)) for path in wanted - set(run)}
    assert not missing, f"run by no process: {missing}"


def test_the_compiled_tests_have_a_step_of_their_own():
    text = SCRIPT.read_text()
    assert "--deselect tests/products/test_compiled.py" in text and "--ignore" not in text


def test_the_script_is_well_formed():
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert subprocess.run(["bash", "-n", str(SCRIPT)], check=False).returncode == 0


def test_the_direct_calls_reach_every_kernel_and_agree_with_the_references(capsys):
    called = {name for name, _ in tool.inputs(tool.DTYPES[0], "cpu")}
    assert called == {n for n in kernels.__all__ if re.match("outer|softmax|mse|sigmoid", n)}
    tool.main("cpu")
    assert "35 calls on cpu" in capsys.readouterr().out


def test_a_kernel_that_is_wrong_fails_its_direct_call(monkeypatch):
    right = kernels.outer_norm
    monkeypatch.setattr(kernels, "outer_norm", lambda a, g: 1.1 * right(a, g))
    with pytest.raises(AssertionError, match="outer_norm: torch.float32: relative error"):
        tool.main("cpu")
