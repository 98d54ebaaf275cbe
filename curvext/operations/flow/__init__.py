"""How samples flow through each operation, backwards."""
