"""Models of the reference implementation, in plain PyTorch."""
