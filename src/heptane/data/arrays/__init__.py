"""Arrays in memory or in a file, and the built-in data sets of arrays."""
