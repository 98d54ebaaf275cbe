"""Compiles every CUDA kernel for each architecture, and holds what came of it against tools/cuda_bounds.json.

Needs ``nvcc`` and neither torch nor a GPU: ``python tools/cuda_check.py [architecture ...]``. No kernel may spill
registers. For those with a bound also the registers are counted and, from the machine code that ``cuobjdump`` prints,
the instructions of the main loop for each of its matrix instructions, or the bytes that a thread asks global memory for
before it waits for any of them: the performance test that runs anywhere. A bound of instructions has a number for each
architecture, by its digits, as they have other instructions.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BOUNDS = ROOT / "tools" / "cuda_bounds.json"
ARCHITECTURES = ("80", "90", "90a")
ENTRY = re.compile(r"Compiling entry function '(\w+)'(.*?Used (\d+) registers)", re.DOTALL)
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
LOAD = re.compile(r"\bLDG(\S*) R(\d+)")
REGISTER = re.compile(r"\bR(\d+)")
JUMP = re.compile(r"\bBRA\S* (?:.*, )?0x([0-9a-f]+)")
#: of a kernel: registers, bytes_in_flight, and instructions_per_mma by architecture
Bound = dict[str, Any]


@dataclass(frozen=True)
class Kernel:
    """What ptxas says of one kernel: registers of a thread, bytes spilled, bytes of stack."""

    name: str
    registers: int
    spilled: int
    stack: int


def tool(name: str, advice: str) -> str:
    """A program of the toolkit: on PATH, under CUDA_HOME, or where a package of PyPI has put it."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [f"{home}/bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    places += map(str, sorted(packages.glob("cu*/bin")))
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))
    if not found:
        sys.exit(f"cuda_check: {name} is neither on PATH nor under CUDA_HOME; {advice}")
    return found


def compiled(nvcc: str, source: Path, architecture: str, cubin: Path) -> str:
    """What ptxas says about the kernels of one file, whose code goes to ``cubin``."""
    command = [nvcc, "-std=c++17", "-O3", "-Xptxas", "-v", "-cubin", str(source), "-o", str(cubin)]
    command += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"cuda_check: {source.name} does not compile for sm_{architecture}\n{done.stdout}{done.stderr}"
        )
    return done.stderr


def plain_names(mangled: list[str]) -> dict[str, str]:
    """Names as a table can hold them: without namespaces and arguments."""
    done = subprocess.run(
        ["c++filt", *mangled], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    scopes = re.compile(r"\(anonymous namespace\)::|\b(void|curvext|cuda|_GLOBAL__N__\w+)(::| )")
    return {
        name: without_arguments(scopes.sub("", line)).replace("__nv_bfloat16", "bfloat16")
        for name, line in zip(mangled, done, strict=True)
    }


def without_arguments(name: str) -> str:
    """A function's name up to the bracket of its arguments, which stands outside those of its template."""
    depth = 0
    for at, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            return name[:at]
    return name


def kernels(report: str) -> list[Kernel]:
    found = []
    for name, text, registers in ENTRY.findall(report):
        frames = FRAME.findall(text)
        spilled = sum(int(stores) + int(loads) for _, stores, loads in frames)
        stack = max((int(frame) for frame, _, _ in frames), default=0)
        found.append(Kernel(name, int(registers), spilled, stack))
    return found


def main_loop(code: str) -> list[str]:
    """The instructions of the shortest loop with most matrix instructions; empty where no loop has any."""
    instructions = [(int(at, 16), text) for at, text in INSTRUCTION.findall(code)]
    loops = []
    for at, text in instructions:
        jump = JUMP.search(text)
        if jump and int(jump[1], 16) < at:
            begin = int(jump[1], 16)
            loops.append([text for place, text in instructions if begin <= place <= at])
    loops = [loop for loop in loops if products(loop)]
    return max(loops, key=lambda loop: (products(loop), -len(loop)), default=[])


def bytes_in_flight(code: str) -> int:
    """The most bytes of global memory that one thread is waiting for at once, going through the code as it stands.

    A load has arrived, and with it all before it, where its registers are named next. What stands on two sides of a
    branch counts as one after the other: the number is one that some path reaches, or less.
    """
    flying: list[tuple[set[int], int]] = []
    most = 0
    for _, text in INSTRUCTION.findall(code):
        named = {int(register) for register in REGISTER.findall(text)}
        waited = [i for i, (registers, _) in enumerate(flying) if registers & named]
        if waited:
            del flying[: waited[-1] + 1]
        load = LOAD.search(text)
        if load:
            sizes = {".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}
            size = next((n for name, n in sizes.items() if name in load[1]), 4)
            first = int(load[2])
            flying.append((set(range(first, first + (size + 3) // 4)), size))
            most = max(most, sum(n for _, n in flying))
    return most


def products(instructions: list[str]) -> int:
    return sum(bool(re.search(r"\b[HIDQ]G?MMA\b", text)) for text in instructions)


def codes(cuobjdump: str, cubin: Path) -> dict[str, str]:
    """The machine code of each kernel of a file, by its mangled name."""
    done = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], capture_output=True, text=True, check=True
    )
    parts = done.stdout.split("Function : ")[1:]
    return {part.split("\n", 1)[0].strip(): part for part in parts}


def per_product(loop: list[str]) -> float:
    """Instructions of a loop for each of its matrix instructions."""
    return len(loop) / max(1, products(loop))


def beyond(kernel: Kernel, code: str, bound: Bound, architecture: str) -> list[str]:
    """What of a kernel is outside its bounds."""
    found = []
    if kernel.registers > bound["registers"]:
        found.append(f"{kernel.registers} registers, at most {bound['registers']}")
    flying = bytes_in_flight(code)
    if flying < bound.get("bytes_in_flight", 0):
        found.append(f"{flying} bytes in flight, at least {bound['bytes_in_flight']}")
    if "instructions_per_mma" not in bound:
        return found
    most, loop = bound["instructions_per_mma"], main_loop(code)
    most = most.get(re.sub(r"\D", "", architecture))
    if most is None:
        found.append(f"no bound of instructions_per_mma for sm_{architecture}")
    elif not loop or per_product(loop) > most:
        found.append(
            f"{per_product(loop):.2f} instructions for each mma of the main loop, at most {most}"
        )
    return found


def check(source: Path, architecture: str, bounds: dict[str, Bound]) -> set[str]:
    """Prints what one file became; the bounds that it has met. Exits where one is not."""
    nvcc = tool("nvcc", "install a CUDA toolkit to run this check")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "object.cubin"
        found = kernels(compiled(nvcc, source, architecture, cubin))
        names = plain_names([kernel.name for kernel in found])
        bounded = [kernel for kernel in found if names[kernel.name] in bounds]
        code = {}
        if bounded:
            code = codes(
                tool("cuobjdump", "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm has it"),
                cubin,
            )
    most = max(found, key=lambda kernel: kernel.registers)
    spilled = sum(kernel.spilled for kernel in found)
    print(
        f"{source.name:28} sm_{architecture:4} {most.registers:3} registers, {spilled} bytes spilled, "
        f"stack {max(kernel.stack for kernel in found)}"
    )
    faults = [
        f"{names[k.name]}: {k.spilled} bytes of registers spilled" for k in found if k.spilled
    ]
    for kernel in bounded:
        name, loop = names[kernel.name], main_loop(code[kernel.name])
        counted = (
            f"main loop {len(loop)} instructions, {products(loop)} mma, {per_product(loop):.2f} for each"
            if loop
            else f"{bytes_in_flight(code[kernel.name])} bytes in flight"
        )
        print(f"    {name}: {kernel.registers} registers, {counted}")
        outside = beyond(kernel, code[kernel.name], bounds[name], architecture)
        faults += [f"{name}: {what}" for what in outside]
    if faults:
        sys.exit(f"cuda_check: {source.name}, sm_{architecture}: " + "; ".join(faults))
    return {names[kernel.name] for kernel in bounded}


def main() -> None:
    bounds = json.loads(BOUNDS.read_text())
    for architecture in sys.argv[1:] or ARCHITECTURES:
        met: set[str] = set()
        for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")):
            met |= check(source, architecture, bounds)
        if met != set(bounds):
            sys.exit(
                f"cuda_check: no such kernel for sm_{architecture}: {', '.join(set(bounds) - met)}"
            )


if __name__ == "__main__":
    main()
