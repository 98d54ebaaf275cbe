"""``python -m curvext info``: what is installed, what was built, and what runs."""

import argparse

import torch

import curvext
from curvext import _extension


def describe() -> str:
    """One line per fact: versions, the extension or why it is missing, instruction set, architectures, threads."""
    info = _extension.build_info()
    rows = {"curvext": curvext.__version__, "torch": torch.__version__}
    if info is None:
        rows["extension"] = (
            f"missing ({_extension.missing_because}); build it: {_extension.BUILD_COMMAND}"
        )
    else:
        assert _extension.module is not None
        levels = ", ".join(_extension.module.cpu.simd_levels())
        rows["extension"] = f"built by {info['compiler']} against torch {info['torch']}"
        rows["simd"] = f"{info['simd']} (this processor runs {levels})"
        rows["openmp"] = str(info["openmp"])
        rows["cuda"] = f"{info['cuda']} for {info['cuda_arch']}" if info["cuda"] else "not built"
    rows["threads"] = str(torch.get_num_threads())
    return "\n".join(f"{name:10} {value}" for name, value in rows.items())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m curvext", description=__doc__)
    parser.add_argument("command", choices=["info"], help="info: versions, build and hardware")
    parser.parse_args()
    print(describe())


if __name__ == "__main__":
    main()
