"""Building blocks that the kernels of all operations share."""
