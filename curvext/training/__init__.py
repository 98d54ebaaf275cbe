"""Per-sample quantities in a training loop of one's own."""

from curvext.training.backward import BackwardResult, backward

__all__ = ["BackwardResult", "backward"]
