"""Masks, ranking, shards and precision: tensors without a recipe or a module."""
