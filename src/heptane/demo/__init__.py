"""The demonstration: what heptane is for, on data that is fetched for it, within a given time on any machine."""

from heptane.demo.show import demo

__all__ = ["demo"]
