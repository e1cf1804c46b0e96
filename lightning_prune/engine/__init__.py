"""The engine: chooses tensors, updates masks and keeps zeros."""
