"""The demonstration: what heptane is for, on data that is fetched for it, within a given time on any machine."""

from heptane.cli.demonstration.show import demo

__all__ = ["demo"]
