"""Which number formats this processor computes natively; PyTorch emulates the others, many times slower."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from heptane.base.environment import _cpu_flags, _cpu_model
from heptane.base.lazy import torch
from heptane.base.version import __version__

X86 = ("x86_64", "amd64", "i386", "i686", "x86")


def computes_bf16() -> bool:
    """Whether this processor has units for bf16: AVX-512 BF16 or AMX on x86, the BF16 extension on ARM.

    On x86 PyTorch's own "is supported" does not tell: with AVX-512 it accepts emulation too.
    """
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False  # oneDNN provides the kernels that use these units
    if platform.machine().lower() in X86:
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(_says_yes(torch.cpu, name) for name in names)
    return _says_yes(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")


def describe(device: torch.device) -> dict[str, Any]:
    """What a speed measurement on ``device`` depends on: hardware, instruction sets, threads and PyTorch's version."""
    found: dict[str, Any] = {"heptane": __version__, "torch": torch.__version__, "device": device.type}
    if device.type == "cuda":
        return {**found, "gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return {
        **found,
        "cpu": _cpu_model(),
        "flags": _cpu_flags() if Path("/proc/cpuinfo").exists() else None,
        "cores": os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16": computes_bf16(),
        "threads": torch.get_num_threads(),
    }


def _says_yes(owner: Any, name: str) -> bool:
    try:
        return bool(getattr(owner, name)())
    except (AttributeError, RuntimeError, NotImplementedError):
        return False
