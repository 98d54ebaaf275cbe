"""Per-sample gradients of all parameters in one backward pass, and what is made of them."""
