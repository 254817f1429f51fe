"""The environment of a run: machine, versions and commit, recorded with every measurement."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from heptane.base.lazy import torch

T = TypeVar("T")
_CPUINFO = Path("/proc/cpuinfo")
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def describe() -> dict[str, Any]:
    """Describe this machine and process for ``result.json``; unknown facts are ``None``, and nothing raises.

    Does not import PyTorch: until it is loaded, ``threads`` is ``None`` and ``gpus`` is empty.

    Returns:
        ``python``, ``torch``, ``heptane`` (versions), ``platform``, ``cpu`` (model), ``cores`` (of the machine),
        ``cores_usable`` (by this process), ``threads`` (of PyTorch), ``memory_gib``, ``gpus`` (names), ``cpu_flags``
        (name: whether the CPU has it), ``load_average`` (1, 5 and 15 minutes), ``governor``, ``git_commit`` of the
        current directory, and ``git_dirty``, whether tracked files differ from that commit.
    """
    git = _attempt(_git) or {}
    return {
        "python": platform.python_version(),
        "torch": _attempt(lambda: importlib.metadata.version("torch")),
        "heptane": _attempt(lambda: importlib.metadata.version("heptane"))
        or getattr(sys.modules["heptane"], "__version__", None),
        "platform": _attempt(platform.platform),
        "cpu": _attempt(_cpu_model),
        "cores": os.cpu_count(),
        "cores_usable": _attempt(lambda: len(os.sched_getaffinity(0))) or os.cpu_count(),
        "threads": _attempt(lambda: torch.get_num_threads() if _torch_is_loaded() else None),
        "memory_gib": _attempt(lambda: round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)),
        "gpus": _attempt(_gpu_names) or [],
        "cpu_flags": _attempt(_cpu_flags),
        "load_average": _attempt(lambda: [round(load, 2) for load in os.getloadavg()]),
        "governor": _attempt(lambda: _GOVERNOR.read_text().strip()),
        "git_commit": git.get("commit"),
        "git_dirty": git.get("dirty"),
    }


def _attempt(probe: Callable[[], T]) -> T | None:
    """Return ``probe()``, or ``None`` if it fails on this machine."""
    try:
        return probe()
    except Exception:
        return None


def _torch_is_loaded() -> bool:
    """Whether PyTorch is really imported: the lazy module has no extension module."""
    return "torch._C" in sys.modules


def _cpuinfo(*fields: str) -> str | None:
    """The first value of one of ``fields`` in /proc/cpuinfo."""
    for line in _CPUINFO.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in fields:
            return value.strip()
    return None


def _cpu_model() -> str | None:
    return _attempt(lambda: _cpuinfo("model name")) or platform.processor() or platform.machine() or None


def _cpu_flags() -> dict[str, bool] | None:
    """Whether the CPU has the instructions that make 16-bit arithmetic fast."""
    line = _cpuinfo("flags", "Features")
    if line is None:
        return None
    flags = set(line.split())
    return {
        "avx2": "avx2" in flags,
        "avx512": "avx512f" in flags,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx": "amx_bf16" in flags,
    }


def _gpu_names() -> list[str]:
    if not _torch_is_loaded():
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not torch.cuda.is_available():
            return []
        return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _git() -> dict[str, Any]:
    """The commit of the current directory and whether tracked files differ from it."""
    # A repository's configuration can name a program as file monitor: asking for the status must not run it.
    command = ["git", "-c", "core.fsmonitor=false", "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    answer = subprocess.run(command, capture_output=True, timeout=5, env=environ, check=True)
    lines = answer.stdout.decode(errors="replace").splitlines()
    commits = [line.split()[-1] for line in lines if line.startswith("# branch.oid ")]
    if not commits or commits[0] == "(initial)":
        return {}
    return {"commit": commits[0], "dirty": any(not line.startswith("#") for line in lines)}
