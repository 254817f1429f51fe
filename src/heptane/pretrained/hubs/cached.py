"""Find pretrained image weights that are available on this machine, in milliseconds and without the network."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

from heptane.pretrained.hubs import efficientnet_hub, minilm_hub

HOW = f"get ImageNet weights with: {efficientnet_hub.INSTALL}"
HOW_TEXT = f"get MiniLM with: {minilm_hub.INSTALL}"
TIMM = ("mobilenetv3_large_100.ra_in1k", "efficientnet_lite0.ra_in1k", "resnet18.a1_in1k")
"""Small networks that take milliseconds per image, best first; on the hub they are ``timm/NAME``."""
TRANSFORMERS = ("microsoft/resnet-18", "microsoft/resnet-26", "google/mobilenet_v2_1.0_224")
FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Pretrained:
    """A network whose weights are available on this machine."""

    model: str
    """its name for ``--model``"""
    weights: str
    """their name for ``--transfer.weights``"""
    note: str
    """where they come from"""


def find_pretrained() -> Pretrained | None:
    """Weights of the extra ``pretrained``, else weights that timm or transformers have cached; else None."""
    if efficientnet_hub.is_installed():
        return Pretrained(efficientnet_hub.NAME, efficientnet_hub.NAME, "has ImageNet weights")
    if importlib.util.find_spec("timm") is not None:
        for name in TIMM:
            if is_cached(f"timm/{name}"):
                return Pretrained(f"timm:{name}", f"timm:{name}", "has ImageNet weights, in the cache of timm")
    if importlib.util.find_spec("transformers") is not None:
        for repository in TRANSFORMERS:
            if is_cached(repository):
                name = f"hf:{repository}"
                return Pretrained(name, name, "has ImageNet weights, in the cache of Hugging Face")
    return None


def find_text() -> Pretrained | None:
    """Weights for text; else None."""
    return Pretrained(minilm_hub.NAME, minilm_hub.NAME, "knows English sentences") if minilm_hub.is_installed() else None


def is_cached(repository: str) -> bool:
    """Whether the Hugging Face cache on this machine holds the weights of a repository."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub") / f"models--{repository.replace('/', '--')}"
    return any(file.exists() for name in FILES for file in cache.glob(f"snapshots/*/{name}"))
