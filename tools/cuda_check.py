"""Compiles every CUDA kernel for each architecture and fails where one spills registers.

Needs ``nvcc`` and neither torch nor a GPU: ``python tools/cuda_check.py [architecture ...]``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ("80", "90", "90a")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def compiler() -> str:
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not found:
        sys.exit(
            "cuda_check: nvcc is neither on PATH nor under CUDA_HOME; install a CUDA toolkit to run this check"
        )
    return found


def compile_report(nvcc: str, source: Path, architecture: str) -> str:
    """What ptxas says about the kernels of one file."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            "-std=c++17",
            "-O3",
            "-Xptxas",
            "-v",
            "-c",
            str(source),
            "-o",
            f"{folder}/object.o",
        ]
        command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"cuda_check: {source.name} does not compile for sm_{architecture}\n{done.stdout}{done.stderr}"
        )
    return done.stderr


def check(nvcc: str, source: Path, architecture: str) -> bool:
    report = compile_report(nvcc, source, architecture)
    spilled = sum(int(stores) + int(loads) for _, stores, loads in FRAME.findall(report))
    stack = max((int(frame) for frame, _, _ in FRAME.findall(report)), default=0)
    registers = max(map(int, REGISTERS.findall(report)), default=0)
    verdict = "FAILS" if spilled else "ok"
    print(
        f"{source.name:28} sm_{architecture:4} {registers:3} registers, {spilled} bytes spilled, "
        f"stack {stack}  {verdict}"
    )
    return not spilled


def main() -> None:
    nvcc = compiler()
    architectures = sys.argv[1:] or ARCHITECTURES
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    passed = [
        check(nvcc, source, architecture) for source in sources for architecture in architectures
    ]
    if not all(passed):
        sys.exit("cuda_check: a kernel spills registers to memory; see the lines above")


if __name__ == "__main__":
    main()
