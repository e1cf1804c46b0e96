"""Default values that the functions and the command share; importing them imports no callback."""

BATCHES = 16  # shown to a criterion, or used to compare and calibrate a file
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)  # the grid of a sensitivity measurement
