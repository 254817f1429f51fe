"""Data sets as tensors in memory: two built-in ones, folders of images, and arrays."""

from heptane.data.dataset import Data
from heptane.data.load import load_data

__all__ = ["Data", "load_data"]
