"""Process-wide switches of PyTorch, put back when the last thread leaves.

Threads that each saved and restored a switch would put back what another had set. Where PyTorch asks Python, a switch
acts only in the threads that entered it; a switch in C++ acts on every thread meanwhile, as noted for each.

One file because every switch is held in the same way, and one must see all of them to know what a pass changes.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrize
from torch.utils import checkpoint

from curvext.torch_internals.shared_context import SharedContext

# ---------------------------------------------------------------------- backends


@SharedContext
def without_cudnn() -> Iterator[None]:
    """Recurrent layers by ordinary operations. Public, but process-wide: convolutions of other threads are slower."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


@SharedContext
def without_mkldnn() -> Iterator[None]:
    """Recurrent layers by ordinary operations. Public, but process-wide: convolutions of other threads are slower."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


@SharedContext
def with_math_attention() -> Iterator[None]:
    """Attention of elementary operations. Public, but process-wide: attention of other threads takes more memory."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


@SharedContext
def with_every_attention() -> Iterator[None]:
    """PyTorch chooses among all its attentions, also inside :func:`with_math_attention`. Public, but process-wide."""
    fused = [
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
    ]
    with sdpa_kernel([*fused, SDPBackend.MATH]):
        yield


@SharedContext
def deterministic_algorithms() -> Iterator[None]:
    """Scattered sums are added in a fixed order; operations that have no such order run nonetheless, without a warning.

    PyTorch would also fill what ``torch.empty`` returns with NaN, a launch and a write for each; compiled stages write
    all of it. Public, but process-wide, as are Python's warning filters.
    """
    switches: Any = torch.utils.deterministic  # a module with a property
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = switches.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    switches.fill_uninitialized_memory = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        switches.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


# ---------------------------------------------------------------------- forward passes


@SharedContext
def plain_forward() -> Iterator[None]:
    """The settings of every forward pass of the library.

    * Convolutions by algorithms that give the same bits each time (``cudnn.deterministic``, public).
    * No fast path of ``nn.TransformerEncoder`` and ``nn.MultiheadAttention`` (``torch.backends.mha``, public): where
      none of their parameters is trained it computes something else, zeros at padding.
    * Parametrised weights computed in every forward pass: one that is kept belongs to another graph. Private:
      ``parametrize._cache_enabled``; if it is renamed, a pass inside ``parametrize.cached()`` reads stale weights, and
      this context raises an AttributeError.
    """
    cudnn, mha = torch.backends.cudnn, torch.backends.mha
    before = cudnn.deterministic, mha.get_fastpath_enabled()
    count: Any = parametrize._cache_enabled
    cudnn.deterministic = True
    mha.set_fastpath_enabled(False)
    parametrize._cache_enabled = _CacheCount(count, count)
    try:
        yield
    finally:
        # another thread may have entered or left cached() meanwhile
        parametrize._cache_enabled = int(parametrize._cache_enabled)
        cudnn.deterministic = before[0]
        mha.set_fastpath_enabled(before[1])


class _CacheCount(int):
    """A counter of open ``parametrize.cached()``; threads in plain_forward ignore those opened before.

    Args:
        value: how many are open.
        before: how many were open at first.
    """

    def __new__(cls, value: int, before: int) -> _CacheCount:
        self = super().__new__(cls, value)
        self._before = before
        return self

    _before: int

    def __add__(self, other: int) -> _CacheCount:
        return _CacheCount(int(self) + other, self._before)

    def __sub__(self, other: int) -> _CacheCount:
        return _CacheCount(int(self) - other, self._before)

    def __bool__(self) -> bool:
        return int(self) > (self._before if plain_forward.entered_here() else 0)


@SharedContext
def without_checkpointing() -> Iterator[None]:
    """Blocks under ``torch.utils.checkpoint`` keep what they save, however that function was imported.

    A checkpointed block runs again in each backward pass, and only that pass may read what the block saved: there are
    no uses, no tangents and no second pass. No node shows it, and the reentrant variant has no graph at all where
    nothing before the block requires a gradient. Other threads checkpoint as before.

    Private: ``checkpoint._checkpoint_hook``, which ``checkpoint(use_reentrant=False)`` calls with its frame, and that
    ``checkpoint(use_reentrant=True)`` calls ``CheckpointFunction.apply``. If either changes, the AttributeError here
    or the CheckpointError of a second pass says so.
    """
    hook: Any = checkpoint._checkpoint_hook
    function = checkpoint.CheckpointFunction
    inherited = function.apply

    def hook_elsewhere(frame: Any) -> AbstractContextManager[None]:
        return nullcontext() if without_checkpointing.entered_here() else hook(frame)

    def apply(run: Callable[..., Any], preserve_rng_state: bool, *inputs: Any) -> Any:
        if without_checkpointing.entered_here():
            return run(*inputs)
        return inherited(run, preserve_rng_state, *inputs)

    checkpoint._checkpoint_hook = hook_elsewhere  # type: ignore[assignment,misc]
    function.apply = staticmethod(apply)  # type: ignore[method-assign]
    try:
        yield
    finally:
        checkpoint._checkpoint_hook = hook  # type: ignore[misc]
        del function.apply  # the inherited one comes back


# ---------------------------------------------------------------------- compiling


class _CompilingHere:
    """Replaces a bool: true in threads inside :func:`reported_as_compiling`, unchanged elsewhere."""

    def __init__(self, before: Any) -> None:
        self._before = before

    def __bool__(self) -> bool:
        return reported_as_compiling.entered_here() or bool(self._before)

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    def __hash__(self) -> int:
        return hash(bool(self))

    def __or__(self, other: bool) -> bool:
        return bool(self) | other

    def __and__(self, other: bool) -> bool:
        return bool(self) & other

    __ror__, __rand__ = __or__, __and__


@SharedContext
def reported_as_compiling() -> Iterator[None]:
    """``torch.compiler.is_compiling()`` is true in this thread: a model that is traced may not look at values.

    Private: ``torch.compiler._is_compiling_flag``, which that function returns. If it is renamed, this context raises
    an AttributeError.
    """
    before = torch.compiler._is_compiling_flag
    flag: Any = _CompilingHere(before)
    torch.compiler._is_compiling_flag = flag
    try:
        yield
    finally:
        if (
            torch.compiler._is_compiling_flag is flag
        ):  # else torch.compile has set it, in another thread
            torch.compiler._is_compiling_flag = before


@SharedContext
def _eager_stance() -> Iterator[None]:
    with torch.compiler.set_stance("force_eager"):
        yield


def without_compiled_code() -> AbstractContextManager[None]:
    """Compiled functions run as written: neither uses nor second derivatives are seen inside compiled code.

    Public since 2.6, but process-wide: compiled models of other threads run eagerly meanwhile. Importing
    ``torch._dynamo`` takes seconds, so nothing is switched while nothing has imported it.
    """
    return _eager_stance() if "torch._dynamo" in sys.modules else nullcontext()
