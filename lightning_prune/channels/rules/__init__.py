"""The rule of each operation."""
