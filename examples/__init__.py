"""Small real trainings, to run and to copy from."""
