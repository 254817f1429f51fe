"""What every other part stands on: errors, files, random numbers, clocks; it knows nothing of models or training."""
