"""Runs the kernels' tests on the CUDA sources without a GPU: compiled for the CPU, each thread of a block a fiber.

``python tools/cuda_emulation.py [--order reverse] [--sanitize] [pytest arguments]`` needs Linux, g++ and any torch. It
finds wrong indices, missing barriers and wrong layouts of fragments: the logic of the kernels. It is no run on a GPU:
it says nothing of the hardware, of nvcc, or of time.
"""

from __future__ import annotations

import argparse
import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parent.parent
EMULATION = ROOT / "tools" / "emulation"
ORDERS = ("forward", "reverse", "shuffled")
#: CUDA's headers, all replaced by one
HEADERS = (
    "cuda_bf16.h",
    "cuda_fp16.h",
    "cuda_runtime.h",
    "c10/cuda/CUDAException.h",
    "c10/cuda/CUDAGuard.h",
    "c10/cuda/CUDAStream.h",
)
# registers that were never written hold a pattern, as shared memory does
FLAGS = [
    *("-std=c++20", "-O1", "-fPIC", "-ftrivial-auto-var-init=pattern", "-fmax-errors=2"),
    *("-Wall", "-Wno-unknown-pragmas", "-Wno-psabi", "-Wno-sign-compare"),
]
# the address sanitizer does not know the stacks of fibers; -fsanitize=bounds checks the indices of arrays there
SANITIZE = [
    *("-g1", "-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"),
    "--param=asan-stack=0",
]
LAUNCH = re.compile(r"(\w+(?:<[^;(){}]*>)?)<<<(.*?)>>>\(")
SHARED = re.compile(r"__shared__ (.*?)(\w+\[[^;]*);")


class Unavailable(Exception):
    """Why nothing can be emulated here."""


def compiler() -> str:
    """g++, and the stacks of fibers that Linux has."""
    if not sys.platform.startswith("linux"):
        raise Unavailable(f"fibers are not made on {sys.platform}")
    if shutil.which("g++") is None:
        raise Unavailable("g++ is not installed")
    return "g++"


def split(text: str) -> list[str]:
    """The parts between the commas outside brackets."""
    parts, depth = [""], 0
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts]


def plain(source: str) -> str:
    """CUDA C++ as C++: launches, and declarations of shared memory."""

    def launch(found: re.Match[str]) -> str:
        configuration = [*split(found[2]), "0", "nullptr"][:4]
        return f"emulation::launch({', '.join([found[1], *configuration])}, "

    def shared(found: re.Match[str]) -> str:
        declared = []
        for array in split(found[2]):
            name, extents = array[: array.index("[")], array[array.index("[") :]
            declared.append(
                f"auto& {name} = emulation::shared<{found[1].strip()}{extents}, __COUNTER__>();"
            )
        return " ".join(declared)

    result = SHARED.sub(shared, LAUNCH.sub(launch, source))
    left = re.search(r"<<<|\b(__shared__|asm|extern)\b", result)
    if left:
        raise ValueError(f"cuda_emulation: cannot translate {left[0]!r}")
    return result


def write(path: Path, text: str) -> None:
    """Writes where something changed, so that what was compiled stays new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def translate(folder: Path) -> list[Path]:
    """The sources as C++ in a folder; those to compile."""
    for header in HEADERS:
        write(folder / "include" / header, f'#include "{EMULATION / "cuda.h"}"\n')
    sources = [EMULATION / "emulation.cpp"]
    for path in [*ROOT.glob("csrc/*.*"), ROOT / "csrc/cpu/isa.h", *ROOT.glob("csrc/cuda/*")]:
        at = path.relative_to(ROOT)
        if at == Path("csrc/cpu.cpp"):  # what the CUDA kernels take the place of
            continue
        text = path.read_text()
        if (EMULATION / path.name).exists():  # what has a double there
            text = f'#include "{EMULATION / path.name}"\n'
        elif path.name == "bindings.cpp":  # the CUDA kernels in the place of the CPU's
            text = text.replace("(cpu, curvext::cpu)", "(cpu, curvext::cuda)")
        elif path.parent.name == "cuda":
            text = f'#line 1 "{at}"\n' + plain(text)
        write(folder / at, text)
        if path.suffix in (".cpp", ".cu"):
            sources.append(folder / at)
    return sources


def includes(folder: Path) -> list[str]:
    ours = [folder / "include", EMULATION, sysconfig.get_path("include")]
    return [f"-I{path}" for path in ours] + [
        f"-isystem{path}" for path in cpp_extension.include_paths()
    ]


def built(sanitize: bool = False) -> Path:
    """The emulated extension, compiled where it is older than its sources."""
    compiler()
    folder = ROOT / "build" / ("cuda_emulation_sanitized" if sanitize else "cuda_emulation")
    sources = translate(folder)
    flags = [*FLAGS, *(SANITIZE if sanitize else ()), *includes(folder)]
    flags += ["-DCURVEXT_CUDA=emulated", "-DCURVEXT_CUDA_ARCH=none", "-DTORCH_EXTENSION_NAME=_C"]

    def compile_one(source: Path) -> Path:
        target = folder / f"{source.stem}{source.suffix[1:]}.o"
        used = target.with_suffix(".d")  # what it includes, as g++ writes it for make
        if target.exists() and used.exists():
            names = used.read_text().replace("\\\n", " ").split(": ", 1)[1].split()
            made = target.stat().st_mtime
            if all(Path(name).exists() and made > Path(name).stat().st_mtime for name in names):
                return target
        command = ["g++", *flags, "-MMD", "-x", "c++", "-c", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"cuda_emulation: {source.name} does not compile\n{done.stderr}")
        sys.stderr.write(done.stderr)
        return target

    # the longest first
    sources.sort(key=lambda path: path.name not in ("bindings.cpp", "host.cpp"))
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "_C.so"
    link = [
        "g++",
        "-shared",
        *(SANITIZE if sanitize else ()),
        *map(str, objects),
        "-o",
        str(library),
    ]
    link += [f"-L{path}" for path in cpp_extension.library_paths()]
    link += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"]
    if not library.exists() or any(o.stat().st_mtime > library.stat().st_mtime for o in objects):
        subprocess.run(link, check=True)
    return library


def faults(folder: Path) -> str:
    """What the program of planted faults prints."""
    translate(folder)
    write(folder / "faults.cpp", plain((EMULATION / "faults.cu").read_text()))
    command = [compiler(), *FLAGS, *includes(folder), "-o", str(folder / "faults")]
    sources = [str(folder / "faults.cpp"), str(EMULATION / "emulation.cpp")]
    subprocess.run([*command, *sources], check=True)
    return subprocess.run(
        [str(folder / "faults")], capture_output=True, text=True, check=True
    ).stdout


def load(library: Path) -> ModuleType:
    """The emulated extension in the place of ``curvext._C``."""
    loader = importlib.machinery.ExtensionFileLoader("_C", str(library))
    specification = importlib.util.spec_from_loader("_C", loader)
    module = importlib.util.module_from_spec(specification)
    loader.exec_module(module)
    sys.modules["curvext._C"] = module
    return module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--order", choices=ORDERS, default="forward")
    parser.add_argument("--sanitize", action="store_true")
    parser.add_argument("--build", action="store_true", help="build only")
    options, pytest_arguments = parser.parse_known_args()
    library = built(options.sanitize)
    if options.build:
        return
    if options.sanitize and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        # before any other library, and libstdc++ for the exceptions that it watches
        libraries = [
            subprocess.run(
                ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
            ).stdout.strip()
            for name in ("libasan.so", "libstdc++.so")
        ]
        environment = os.environ | {
            "LD_PRELOAD": " ".join(libraries),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        }
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    sys.path.insert(0, str(ROOT))
    load(library).cpu.use_simd(options.order)
    import pytest

    sys.exit(pytest.main([*(pytest_arguments or ["-q", str(ROOT / "tests" / "kernels")])]))


if __name__ == "__main__":
    main()
