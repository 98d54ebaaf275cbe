"""What products answer: solvers, spectra, estimators. They see only shape, dtype, device and matvec."""
