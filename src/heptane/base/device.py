"""Devices by name."""

from __future__ import annotations

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch


def find_device(device: str | torch.device) -> torch.device:
    """The device of this name; refused where PyTorch does not know it, or this machine does not have it."""
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # "meta" holds no numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device={str(device)!r} cannot be used here ({one_line(error)}): expected 'cpu', or a device that is"
        ) from None
    return found
