"""Per-sample quantities in the user's own training loop."""

from curvext.training.backward import BackwardResult, backward

__all__ = ["BackwardResult", "backward"]
