"""Find the named tensors in a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.pretrained.weights.names import abbreviate

OWN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights", "model_weights", "state")
AVERAGED = ("model_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict", "state_dict_ema", "params_ema")
NOT_WEIGHTS = ("optim", "sched", "scaler", "amp", "grad", "history", "metrics", "rng")  # parts of key names
DEPTH = 4  # of nested keys


def find_tensors(found: object, label: str) -> tuple[dict[str, torch.Tensor], str]:
    """The named tensors in a loaded file, and their key, in words; empty if the file holds nothing else.

    Known keys are searched first, recursively: those of ``OWN`` in order, then those of ``AVERAGED``, so that trained
    weights come before their moving average. Next is the mapping itself, if it holds a tensor with dimensions; then the only
    other key that leads to tensors. Scalars beside them, such as an epoch, are not weights.

    Raises:
        InputError: several unknown keys lead to tensors.

    Example:
        >>> find_tensors({"epoch": 3, "net": {"w": torch.ones(2)}, "model_ema": {"w": torch.zeros(2)}}, "w.pth")
        ({'w': tensor([1., 1.])}, "'net' of the file, not 'model_ema'")
    """
    tensors, keys, others = _find(found, label, DEPTH)
    if not keys:
        return tensors, ""
    left = f", not {abbreviate([repr(name) for name in others])}" if others else ""
    return tensors, f"'{'.'.join(keys)}' of the file{left}"


def _find(found: object, label: str, depth: int) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """The tensors, the keys to them, and other keys that lead to tensors."""
    if not isinstance(found, Mapping) or depth < 0:
        return {}, [], []
    known = [key for key in (*OWN, *AVERAGED) if key in found]
    candidates = {key: _find(found[key], label, depth - 1) for key in known if isinstance(found[key], Mapping)}
    candidates = {key: candidate for key, candidate in candidates.items() if candidate[0]}
    direct = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not candidates and any(value.ndim for value in direct.values()):
        return direct, [], []
    if not candidates:
        named = [k for k, v in found.items() if isinstance(k, str) and isinstance(v, Mapping) and k not in known]
        for key in (k for k in named if not any(part in k.lower() for part in NOT_WEIGHTS)):
            candidate = _find(found[key], label, depth - 1)
            candidates |= {key: candidate} if candidate[0] else {}
        if len(candidates) > 1:
            raise InputError(
                f"{label} holds named tensors under {abbreviate([repr(key) for key in candidates])}, and which to "
                "load is ambiguous; save one of them with torch.save(checkpoint[key], path)"
            )
    if not candidates:
        return direct, [], []
    key, *others = candidates
    tensors, keys, inner = candidates[key]
    return tensors, [key, *keys], [*others, *(f"{key}.{name}" for name in inner)]
