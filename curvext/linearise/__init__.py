"""What is computed once per batch and reused: the tape of uses, and the kept graph."""
