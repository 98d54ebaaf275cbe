"""Whole networks: what each quantity costs in gradients, beside its error and beside other libraries."""
