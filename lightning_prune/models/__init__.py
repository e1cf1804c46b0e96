"""Any module: names, calls, tracing and counting."""
