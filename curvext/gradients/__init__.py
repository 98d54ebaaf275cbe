"""Per-sample gradients of one parameter in a structured form, which is never written out."""
