"""J v, Jᵀ u, G v, H v and R v of one batch."""
