"""Per-sample gradients of all parameters in one backward pass, and the quantities made from them."""
