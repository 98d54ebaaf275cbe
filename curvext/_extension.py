"""The compiled extension ``curvext._C``: loaded here, once, or the reason why it is missing."""

from __future__ import annotations

import importlib
from types import ModuleType


class ReferenceFallbackWarning(UserWarning):
    """The native kernels are missing, so a PyTorch reference runs in their place; said once per device type."""


BUILD_COMMAND = "pip install --no-build-isolation ."


def _load() -> tuple[ModuleType | None, str | None]:
    # libtorch must be in the process before anything links against it.
    importlib.import_module("torch")
    try:
        return importlib.import_module("curvext._C"), None
    except ImportError as error:
        return None, str(error)


module, missing_because = _load()


def build_info() -> dict[str, object] | None:
    """How the extension was built and which instruction set it uses; None where it is missing."""
    return None if module is None else module.build_info()


def kernels_for(device: str) -> ModuleType | None:
    """The submodule that holds the kernels of a device type, or None where it was not built."""
    return None if module is None else getattr(module, device, None)


def advice(device: str) -> str:
    """What is missing for a device type and which command builds it."""
    if module is None:
        return (
            f"curvext: the native kernels are missing ({missing_because}), so the slower PyTorch references run. "
            f"Build them with: {BUILD_COMMAND}"
        )
    return (
        f"curvext: this build has no {device} kernels, so the slower PyTorch references run on {device} tensors. "
        f"Build them beside a CUDA build of torch and a CUDA toolkit with: CURVEXT_CUDA=1 {BUILD_COMMAND}"
    )
