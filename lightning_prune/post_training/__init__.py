"""Pruning that needs no training."""
