"""Weights out of a file, a folder or a hub and into a model: read without running code, matched by name and shape, and
reported."""

from heptane.pretrained.weights.files import read_weights
from heptane.pretrained.weights.load import LoadReport, load_weights
from heptane.pretrained.weights.shapes import adapt_channels, adapt_positions

__all__ = ["LoadReport", "adapt_channels", "adapt_positions", "load_weights", "read_weights"]
