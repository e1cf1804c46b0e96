"""Default values that the functions and the command share; importing them imports no callback."""

BATCHES = 16  # shown to a criterion, or used to compare and calibrate a file
STATISTICS = 16  # training batches for new statistics of batch normalizations
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)  # the grid of a sensitivity measurement
SEARCH_SPARSITIES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98)  # the grid of a search
TRIALS = 24  # validations of all groups pruned together, in a search
TOLERANCE = 0.01  # of a sensitivity measurement, in the unit of the metric
