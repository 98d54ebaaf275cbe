"""Which sample each element of a tensor belongs to, and how samples lie in it."""
