"""Counts the instructions of two CPU kernels under valgrind and compares them with tools/instructions/expected.json.

``python tools/instruction_counts.py`` fails where a count differs by more than the tolerance; ``--write`` accepts the
new counts. Seconds on a shared machine cannot be trusted; counts are the same wherever the compiler is the same.
valgrind knows no AVX-512, so the sources of ``csrc/cpu/isa`` are compiled for AVX2, with a driver and without torch.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DRIVER = ROOT / "tools" / "instructions" / "driver.cpp"
EXPECTED = ROOT / "tools" / "instructions" / "expected.json"
KERNELS = ("outer_square", "softmax_hessian_mm")
#: of setup.py, without OpenMP: the counted code is that of one thread
FLAGS = ("-std=c++20", "-O3", "-ffp-contract=fast", "-Wno-psabi")
TOLERANCE = 0.03


class Unavailable(Exception):
    """Why nothing can be counted here."""


def compiler() -> str:
    """The compiler with its major version, on which the counts depend."""
    gcc = shutil.which("g++")
    if gcc is None:
        raise Unavailable("g++ is not installed")
    done = subprocess.run([gcc, "-dumpversion"], capture_output=True, text=True, check=True)
    return f"g++ {done.stdout.strip().split('.')[0]}"


def build(folder: Path, flags: tuple[str, ...] = FLAGS) -> Path:
    """The driver with the AVX2 kernels, a matter of seconds."""
    program = folder / "driver"
    sources = [str(DRIVER), str(ROOT / "csrc" / "cpu" / "isa" / "avx2.cpp")]
    command = ["g++", *flags, "-o", str(program), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"instruction_counts: the driver does not compile\n{done.stderr}")
    return program


def count(program: Path, kernel: str, folder: Path) -> int:
    """Instructions inside the kernel's call; setting up the data is not counted."""
    command = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={folder / 'callgrind.out'}",
        f"--toggle-collect=counted_{kernel}*",
        str(program),
        kernel,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        sys.exit(f"instruction_counts: {kernel} did not run under valgrind\n{done.stderr}")
    return int(found.group(1))


def check_available() -> None:
    """Raises :class:`Unavailable` where valgrind or g++ is missing, or this is no x86-64."""
    if platform.machine() != "x86_64":
        raise Unavailable(f"the counted code is that for AVX2, and this is {platform.machine()}")
    if shutil.which("valgrind") is None:
        raise Unavailable("valgrind is not installed")
    compiler()


def counts(program: Path) -> dict[str, int]:
    """The count of every kernel of a driver, beside which valgrind writes."""
    return {kernel: count(program, kernel, program.parent) for kernel in KERNELS}


def differences(found: dict[str, int], expected: dict[str, int]) -> list[str]:
    """The kernels whose counts are off by more than the tolerance, in words."""
    return [
        f"{kernel}: {found[kernel]} instructions, expected {expected[kernel]} "
        f"({found[kernel] / expected[kernel] - 1:+.1%}, tolerance {TOLERANCE:.0%})"
        for kernel in KERNELS
        if abs(found[kernel] / expected[kernel] - 1) > TOLERANCE
    ]


def expected() -> dict[str, int]:
    """The committed counts for this compiler.

    Raises:
        Unavailable: there are none.
    """
    kept = json.loads(EXPECTED.read_text())
    if compiler() not in kept:
        raise Unavailable(f"no counts are kept for {compiler()}, only for {', '.join(kept)}")
    return kept[compiler()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="accept the counts of this tree")
    options = parser.parse_args()
    try:
        check_available()
        with tempfile.TemporaryDirectory() as folder:
            found = counts(build(Path(folder)))
        if options.write:
            kept = json.loads(EXPECTED.read_text()) if EXPECTED.is_file() else {}
            EXPECTED.write_text(json.dumps({**kept, compiler(): found}, indent=1) + "\n")
        off = differences(found, expected())
    except Unavailable as why:
        sys.exit(f"instruction_counts: not counted: {why}")
    for kernel, number in found.items():
        print(f"{kernel:20} {number}")
    if off:
        accept = "if that is meant: python tools/instruction_counts.py --write"
        sys.exit("instruction_counts: " + "; ".join(off) + "; " + accept)


if __name__ == "__main__":
    main()
