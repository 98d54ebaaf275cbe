"""What is known of each operation of PyTorch."""
