"""The suites: kernels, models, scaling, memory, proofs. Each has FULL and QUICK efforts and ``run``."""
