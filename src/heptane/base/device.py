"""Devices by name."""

from __future__ import annotations

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch


def default_device() -> str:
    """Where training runs by default: this worker's GPU, or the CPU."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def find_device(device: str | torch.device) -> torch.device:
    """Return the device of this name.

    Raises:
        InputError: PyTorch does not know it, or this machine does not have it.
    """
    try:
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # rejects "meta", which has no data
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(
            f"device={str(device)!r} is not available ({one_line(error)}): expected 'cpu' or an available GPU"
        ) from None
    return found
