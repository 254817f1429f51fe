"""PyTorch's global settings, copied from the launching process to its workers."""

from __future__ import annotations

from typing import Any

import torch


def settings() -> dict[str, Any]:
    """Return this process's settings."""
    return {
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device().type,
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only_warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32),
        "anomalies": torch.is_anomaly_enabled(),
    }


def apply(found: dict[str, Any]) -> None:
    """Apply what :func:`settings` returned in another process."""
    torch.set_default_dtype(found["dtype"])
    if found["device"] != torch.get_default_device().type:
        torch.set_default_device(found["device"])
    torch.set_float32_matmul_precision(found["matmul"])
    torch.use_deterministic_algorithms(found["deterministic"], warn_only=found["only_warns"])
    cudnn = torch.backends.cudnn
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = found["cudnn"]
    torch.autograd.set_detect_anomaly(found["anomalies"])
