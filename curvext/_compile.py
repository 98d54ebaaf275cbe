"""What ``curvext._C`` is compiled of and with which flags: for ``setup.py`` and for ``python -m curvext build``.

Needs setuptools, as torch's own extension builder does; nothing that runs in a user's program imports it.
``CURVEXT_CUDA=0|1`` overrides whether CUDA kernels are compiled, ``TORCH_CUDA_ARCH_LIST`` for which devices.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from setuptools import Distribution, Extension
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

# 9.0a is never found by torch's detection, and wgmma needs it; PTX of the last serves newer devices.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def builds_cuda() -> bool:
    """Whether torch has CUDA and a toolkit stands by; a visible GPU is not needed to compile.

    Raises:
        RuntimeError: ``CURVEXT_CUDA=1`` asks for CUDA kernels where one of the two is missing.
    """
    chosen = os.environ.get("CURVEXT_CUDA")
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    if chosen == "1" and not possible:
        raise RuntimeError(
            f"CURVEXT_CUDA=1, but torch {torch.__version__} has CUDA {torch.version.cuda} and the toolkit is "
            f"at {CUDA_HOME}: both are needed. Install a CUDA build of torch, or set CUDA_HOME."
        )
    return possible and chosen != "0"


def extension(root: Path) -> Extension:
    """``curvext._C``, of the sources in ``root/csrc``; their paths are relative to ``root``.

    Without debug information and symbol table, which would make it ten times as large.
    """

    def sources(folder: str, pattern: str) -> list[str]:
        return sorted(str(p.relative_to(root)) for p in (root / "csrc" / folder).glob(pattern))

    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    strip = ["-Wl,--strip-all"] if sys.platform == "linux" else []
    flags = ["-O3", "-g0", "-ffp-contract=fast", "-Wall", "-Wno-psabi", "-fvisibility=hidden"]
    common = [path for folder in (".", "cpu/isa") for path in sources(folder, "*.cpp")]
    included = [p for p in (root / "csrc").rglob("*") if p.suffix in (".h", ".inc")]
    included += (root / "csrc" / "cpu").glob("*.cpp")  # by csrc/cpu.cpp
    headers = sorted(str(p.relative_to(root)) for p in included)
    if not builds_cuda():
        return CppExtension(
            "curvext._C",
            common,
            depends=headers,
            extra_compile_args={"cxx": [*flags, *openmp]},
            extra_link_args=[*openmp, *strip],
        )
    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    return CUDAExtension(
        "curvext._C",
        [*common, *sources("cuda", "*.cpp"), *sources("cuda", "*.cu")],
        depends=headers,
        define_macros=[
            ("CURVEXT_CUDA", torch.version.cuda),
            ("CURVEXT_CUDA_ARCH", architectures.replace(" ", ";")),
        ],
        extra_compile_args={
            "cxx": [*flags, *openmp],
            "nvcc": ["-O3", "-std=c++17", "-lineinfo"],
        },
        extra_link_args=[*openmp, *strip],
    )


def compile_into(root: Path, folder: Path) -> None:
    """Compiles the sources in ``root/csrc`` to ``folder/curvext/_C...so``, with the objects beside it."""
    os.chdir(root)
    distribution = Distribution(
        {
            "name": "curvext",
            "ext_modules": [extension(root)],
            "cmdclass": {"build_ext": BuildExtension},
        }
    )
    command = distribution.get_command_obj("build_ext")
    command.build_lib = str(folder)
    command.build_temp = str(folder / "objects")
    command.ensure_finalized()
    command.run()
