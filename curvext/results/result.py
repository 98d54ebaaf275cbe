"""The base class of all results: a frozen dataclass that prints itself."""

from __future__ import annotations

from torch import Tensor

#: tensors and lists of more entries are shown by their shape
_SHOWN = 6


class Result:
    """A frozen dataclass with a short repr; ``str`` is the long one, in words."""

    def __repr__(self) -> str:
        parts = [f"{name}={_short(value)}" for name, value in vars(self).items()]
        return f"{type(self).__name__}({', '.join(parts)})"


def _short(value: object) -> str:
    """A value in a few words: short tensors by their entries, longer ones by their shape."""
    if isinstance(value, Tensor):
        if value.ndim < 2 and value.numel() <= _SHOWN:
            numbers = [f"{x:.5g}" for x in value.detach().reshape(-1).tolist()]
            return numbers[0] if value.ndim == 0 else f"[{', '.join(numbers)}]"
        return f"<{str(value.dtype).removeprefix('torch.')} {list(value.shape)}>"
    if isinstance(value, tuple) or (isinstance(value, dict) and len(value) > _SHOWN):
        return f"<{len(value)}>"
    if isinstance(value, dict):
        return f"{{{', '.join(map(str, value))}}}"
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, str) and len(value) > 40:
        return repr(value[:37] + "...")
    return repr(value)
