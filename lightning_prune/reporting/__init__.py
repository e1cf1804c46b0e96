"""Records and tables of the results."""
