"""Per-sample gradients of one parameter in a structured form that is not materialised."""
