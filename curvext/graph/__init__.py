"""PyTorch's autograd graph, read: its nodes and edges, and the views of parameters in it."""
