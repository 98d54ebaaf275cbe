"""The four suites: kernels, models, scaling, memory. Each has FULL and QUICK efforts and ``run``."""
