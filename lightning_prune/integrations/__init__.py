"""Pruning with the trainers and adapters of other libraries, one library in a file."""
