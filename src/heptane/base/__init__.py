"""Errors, files, random numbers, clocks and trees of tensors: the base layer, independent of models and training."""
