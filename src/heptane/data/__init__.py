"""Datasets as tensors in memory, and batches of any user data."""

from heptane.data.dataset import Data
from heptane.data.load import load_data
from heptane.data.reading import Reading

__all__ = ["Data", "Reading", "load_data"]
