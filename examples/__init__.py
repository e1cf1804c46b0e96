"""Small real trainings. Run them, or copy from them."""
