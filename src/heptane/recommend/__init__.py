"""All defaults that depend on the data and the machine, each with its reason."""

from heptane.recommend.defaults import after_loading, before_loading
from heptane.recommend.facts import Choices, DataFacts, Default, Machine
from heptane.recommend.timing import expected_seconds

__all__ = [
    "Choices",
    "DataFacts",
    "Default",
    "Machine",
    "after_loading",
    "before_loading",
    "expected_seconds",
]
