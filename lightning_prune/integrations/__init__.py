"""Pruning in the trainers of other libraries, one trainer in a file."""
