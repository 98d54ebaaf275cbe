"""The user's model, evaluated on a batch and left as found."""
