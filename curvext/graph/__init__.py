"""Reading PyTorch's autograd graph: its nodes, its edges and the leaves that are parameters."""
