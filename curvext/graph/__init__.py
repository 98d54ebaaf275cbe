"""PyTorch's autograd graph, read: its nodes, its edges and the leaves that are parameters."""
