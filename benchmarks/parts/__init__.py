"""Parts of the larger benchmarks: `parts/<name>/` belongs to `benchmarks/<name>.py`."""
