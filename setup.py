"""Builds ``curvext._C``: the CPU kernels always, the CUDA kernels where torch and a toolkit allow it.

``CURVEXT_CUDA=0|1`` overrides the choice, ``TORCH_CUDA_ARCH_LIST`` the architectures. Without a working compiler the
installation goes on without the extension, and the library runs on its PyTorch references.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# 9.0a is never found by torch's detection, and wgmma needs it; PTX of the last serves newer devices.
DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"


def sources(folder: str, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc" / folder).glob(pattern))


def headers() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h"))


def builds_cuda() -> bool:
    """Whether torch has CUDA and a toolkit stands by; a visible GPU is not needed to compile."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    chosen = os.environ.get("CURVEXT_CUDA")
    possible = torch.version.cuda is not None and CUDA_HOME is not None
    if chosen == "1" and not possible:
        raise RuntimeError(
            f"CURVEXT_CUDA=1, but torch {torch.__version__} has CUDA {torch.version.cuda} and the toolkit is "
            f"at {CUDA_HOME}: both are needed. Install a CUDA build of torch, or set CUDA_HOME."
        )
    return possible and chosen != "0"


def extension():
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    openmp = [] if sys.platform == "darwin" else ["-fopenmp"]
    flags = ["-O3", "-ffp-contract=fast", "-Wall", "-Wno-psabi", "-fvisibility=hidden", *openmp]
    common = ["csrc/bindings.cpp", *sources("cpu", "*.cpp"), *sources("cpu/isa", "*.cpp")]
    if not builds_cuda():
        return CppExtension(
            "curvext._C",
            common,
            depends=headers(),
            extra_compile_args={"cxx": flags},
            extra_link_args=openmp,
        )
    import torch

    architectures = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", DEFAULT_ARCHITECTURES)
    macros = [
        ("CURVEXT_CUDA", torch.version.cuda),
        ("CURVEXT_CUDA_ARCH", architectures.replace(" ", ";")),
    ]
    return CUDAExtension(
        "curvext._C",
        [*common, *sources("cuda", "*.cpp"), *sources("cuda", "*.cu")],
        depends=headers(),
        define_macros=macros,
        extra_compile_args={"cxx": flags, "nvcc": ["-O3", "-std=c++17", "-lineinfo"]},
        extra_link_args=openmp,
    )


def build_command():
    from setuptools.errors import CCompilerError, ExecError, PlatformError
    from torch.utils.cpp_extension import BuildExtension

    class OptionalBuild(BuildExtension):
        """Lets the installation go on where nothing can be compiled, unless CURVEXT_REQUIRE_EXTENSION=1."""

        def run(self):
            try:
                super().run()
            except (CCompilerError, ExecError, PlatformError, RuntimeError, OSError) as error:
                if os.environ.get("CURVEXT_REQUIRE_EXTENSION") == "1":
                    raise
                for ext in self.extensions:
                    ext.optional = True
                print(
                    f"curvext: the native kernels were not built ({error}). The library works on its PyTorch "
                    "references; build later with: python setup.py build_ext --inplace",
                    file=sys.stderr,
                )

        def copy_extensions_to_source(self):
            if all(
                Path(self.get_ext_fullpath(ext.name)).exists() or not self.failed(ext)
                for ext in self.extensions
            ):
                super().copy_extensions_to_source()

        def failed(self, ext):
            return not (Path(self.build_lib) / self.get_ext_filename(ext.name)).exists()

    return OptionalBuild


def keywords() -> dict:
    try:
        import torch  # noqa: F401
    except ImportError:
        print(
            "curvext: torch is missing, so no native kernels; install torch first", file=sys.stderr
        )
        return {}
    return {"ext_modules": [extension()], "cmdclass": {"build_ext": build_command()}}


setup(**keywords())
