"""Datasets as tensors in memory, and batches of any user data."""

from heptane.data.dataset import Data
from heptane.data.load import load_data
from heptane.data.reading import Reading
from heptane.data.texts.text import Text

__all__ = ["Data", "Reading", "Text", "load_data"]
