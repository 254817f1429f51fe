"""Models of timm: ``timm:NAME``, built for this data or with pretrained weights, by timm's own cache and downloads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heptane.base.errors import InputError, did_you_mean, one_line
from heptane.base.lazy import torch
from heptane.pretrained.hubs import import_library

SCHEME = "timm:"


def build(spec: str, input_shape: Sequence[int], num_classes: int) -> object:
    """A model with random weights for images of this shape; models with a fixed image size are built for it.

    Raises:
        InputError: timm is missing or fails to import, has no such model, or cannot build it.
    """
    label, name = f"model={spec!r}", spec.removeprefix(SCHEME)
    timm = _import(label, name)
    if len(input_shape) != 3:
        raise InputError(f"{label} takes images of (channels, height, width), got {tuple(input_shape)}")
    try:
        fixed = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
        size = {"img_size": tuple(input_shape[1:])} if fixed else {}
        return timm.create_model(name, pretrained=False, in_chans=input_shape[0], num_classes=num_classes, **size)
    except Exception as error:
        raise InputError(f"{label}: timm could not build it: {one_line(error)}") from error


def read(spec: str) -> tuple[dict[str, torch.Tensor], str]:
    """The pretrained weights of a model, including its own head, and where they come from.

    timm loads them, so its cache (``HF_HOME``, ``TORCH_HOME``) and ``HF_HUB_OFFLINE`` apply. The random state is restored.

    Raises:
        InputError: timm is missing or fails to import, has no such model or weights, or cannot download them.
    """
    label, name = f"weights={spec!r}", spec.removeprefix(SCHEME)
    timm = _import(label, name)
    if not timm.is_model_pretrained(name):
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        offered = f"; it has {', '.join(tagged[:6])}" if tagged else ""
        raise InputError(f"{label}: timm has no pretrained weights under this name{offered}")
    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=True)
    except Exception as error:
        remedy = "load it once online (cached under HF_HOME), or give the path of its file"
        raise InputError(f"{label}: timm could not load its weights ({one_line(error)}); {remedy}") from error
    tag = (getattr(model, "pretrained_cfg", None) or {}).get("tag")
    full = f"{name}.{tag}" if tag and "." not in name else name
    return dict(model.state_dict()), f"pretrained weights {full} of timm {timm.__version__}"


def _import(label: str, name: str) -> Any:
    timm = import_library("timm", label, "timm")
    if not timm.is_model(name):
        raise InputError(f"{label}: timm has no such model{did_you_mean(name, timm.list_models())}")
    return timm
