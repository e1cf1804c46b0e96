"""Files and kernels for a model that is finished."""
