"""Each kernel beside the PyTorch operation that bounds it."""
