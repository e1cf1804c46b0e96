"""The answers that a user writes."""
