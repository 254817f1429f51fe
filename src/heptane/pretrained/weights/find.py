"""Where in a file the named tensors are: under which key of a training checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.pretrained.weights.names import abbreviate

OWN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights", "model_weights", "state")
AVERAGED = ("model_ema", "ema", "ema_model", "ema_state_dict", "model_ema_state_dict", "state_dict_ema", "params_ema")
NOT_WEIGHTS = ("optim", "sched", "scaler", "amp", "grad", "history", "metrics", "rng")  # beginnings of names, or within them
DEPTH = 4  # of keys within keys


def find_tensors(found: object, said: str) -> tuple[dict[str, torch.Tensor], str]:
    """The named tensors in what a file holds, and where they were, in words; empty where the file is nothing else.

    The rule: known keys in the order of ``OWN``, then those of ``AVERAGED`` (weights as they were trained come before their
    moving average), each looked into likewise; then the mapping itself if it holds a tensor that is not a single number;
    then the one other key that leads to tensors. Single numbers beside them, such as an epoch, are no weights.

    Raises:
        InputError: several keys of unknown names lead to tensors.

    Example:
        >>> find_tensors({"epoch": 3, "net": {"w": torch.ones(2)}, "model_ema": {"w": torch.zeros(2)}}, "w.pth")
        ({'w': tensor([1., 1.])}, "'net' of the file, not 'model_ema'")
    """
    tensors, keys, others = _find(found, said, DEPTH)
    if not keys:
        return tensors, ""
    left = f", not {abbreviate([repr(name) for name in others])}" if others else ""
    return tensors, f"'{'.'.join(keys)}' of the file{left}"


def _find(found: object, said: str, depth: int) -> tuple[dict[str, torch.Tensor], list[str], list[str]]:
    """The tensors, the keys to them, and other keys beside these that would have led to some."""
    if not isinstance(found, Mapping) or depth < 0:
        return {}, [], []
    known = [key for key in (*OWN, *AVERAGED) if key in found]
    leads = {key: _find(found[key], said, depth - 1) for key in known if isinstance(found[key], Mapping)}
    leads = {key: lead for key, lead in leads.items() if lead[0]}
    direct = {str(name): value for name, value in found.items() if isinstance(value, torch.Tensor)}
    if not leads and any(value.ndim for value in direct.values()):
        return direct, [], []
    if not leads:
        named = [k for k, v in found.items() if isinstance(k, str) and isinstance(v, Mapping) and k not in known]
        for key in (k for k in named if not any(part in k.lower() for part in NOT_WEIGHTS)):
            lead = _find(found[key], said, depth - 1)
            leads |= {key: lead} if lead[0] else {}
        if len(leads) > 1:
            raise InputError(
                f"{said} holds named tensors under {abbreviate([repr(key) for key in leads])}, and which to "
                "load is ambiguous; save one of them with torch.save(checkpoint[key], path)"
            )
    if not leads:
        return direct, [], []
    key, *others = leads
    tensors, keys, inner = leads[key]
    return tensors, [key, *keys], [*others, *(f"{key}.{name}" for name in inner)]
