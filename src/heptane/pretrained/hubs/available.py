"""Which pretrained weights for images can be had on this machine, found in milliseconds and without the network."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from heptane.pretrained.hubs import efficientnet_hub

HOW = f"get ImageNet's weights with: {efficientnet_hub.INSTALL}"
TIMM = (  # small networks that read an image in milliseconds, best first, each with its repository on the hub
    ("mobilenetv3_large_100.ra_in1k", "timm/mobilenetv3_large_100.ra_in1k"),
    ("efficientnet_lite0.ra_in1k", "timm/efficientnet_lite0.ra_in1k"),
    ("resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
)
TRANSFORMERS = ("microsoft/resnet-18", "microsoft/resnet-26", "google/mobilenet_v2_1.0_224")
FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Pretrained:
    """A network with weights that can be had here."""

    model: str
    """as ``--model`` names it"""
    weights: str
    """as ``--transfer.weights`` names them"""
    said: str
    """in a few words"""


def find_pretrained() -> Pretrained | None:
    """Weights from the extra ``pretrained``, else from what timm or transformers have loaded before; else None."""
    if efficientnet_hub.is_installed():
        return Pretrained(efficientnet_hub.NAME, efficientnet_hub.NAME, "has ImageNet's weights")
    if importlib.util.find_spec("timm") is not None:
        for name, repository in TIMM:
            if is_cached(repository):
                return Pretrained(f"timm:{name}", f"timm:{name}", "has ImageNet's weights, in the cache of timm")
    if importlib.util.find_spec("transformers") is not None:
        for repository in TRANSFORMERS:
            if is_cached(repository):
                name = f"hf:{repository}"
                return Pretrained(name, name, "has ImageNet's weights, in the cache of Hugging Face")
    return None


def is_cached(repository: str) -> bool:
    """Whether the weights of a repository of the Hugging Face hub lie in its cache on this machine."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{repository.replace('/', '--')}"
    return any(file.exists() for name in FILES for file in cache.glob(f"snapshots/*/{name}"))
