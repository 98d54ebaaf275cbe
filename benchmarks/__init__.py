"""Benchmarks: every figure in the documentation comes from here."""
