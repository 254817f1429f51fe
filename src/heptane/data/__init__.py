"""Datasets as tensors in memory, and batches of any user data."""

from heptane.data.dataset import Data
from heptane.data.images.reading import Reading
from heptane.data.load import load_data

__all__ = ["Data", "Reading", "load_data"]
