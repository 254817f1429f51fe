"""Weights from files and folders: read without running code, matched by name and shape."""

from heptane.pretrained.weights.files import read_weights
from heptane.pretrained.weights.shapes import adapt_channels, adapt_positions

__all__ = ["adapt_channels", "adapt_positions", "read_weights"]
