"""The precision and memory format of a step, chosen by measurement on this machine."""
