"""LoRA adapters, by peft: a trainable product of two thin matrices beside each frozen linear layer.

Equation
    W x + (alpha / r) B A x, with A (r, inputs) random and B (outputs, r) zero, so that at first the output is unchanged.

Source
    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch

ADAPTER = "heptane"


def adapt(model: torch.nn.Module, rank: int, alpha: float | None, head: torch.nn.Module | None, seed: int | None) -> str:
    """Add an adapter to each linear layer but the head, and freeze everything else but the head; return a note for the user.

    Args:
        model: changed in place; its outputs stay the same.
        rank: r, 1 or more.
        alpha: of the equation; None: r, a factor of 1.
        head: trains as it is.
        seed: initializes A without touching PyTorch's global generator; None uses that generator.

    Raises:
        InputError: peft is missing, or the model has no linear layer but its head.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError('Transfer.lora_rank needs peft: pip install "heptane[lora]"') from error
    merge(model)
    targets: dict[torch.nn.Module, list[str]] = {}  # a shared layer has several names
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is torch.nn.Linear and module is not head and name:
            targets.setdefault(module, []).append(name)
    if not targets:
        raise InputError(
            f"Transfer.lora_rank={rank}: {type(model).__name__} has no linear layer besides its head; set lora_rank=0"
        )
    exactly = "|".join(re.escape(name) for name, *_ in targets.values())  # peft matches a list of names as suffixes
    config: dict[str, Any] = {"r": rank, "lora_alpha": rank if alpha is None else alpha, "target_modules": exactly}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(**config), model, adapter_name=ADAPTER)
    for first, *others in targets.values():
        for name in others:
            model.set_submodule(name, model.get_submodule(first))
    for _, layer in _adapted(model):
        layer.register_forward_hook(_no_fast_path)
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for parameter in head.parameters() if head else ():
        parameter.requires_grad_(True)
    whole = sum(p.numel() for p in model.parameters()) - added
    return (
        f"adapters of rank {rank} in {len(targets)} linear layers: {added:,} parameters, {added / whole:.1%} of the model's"
    )


def merge(model: torch.nn.Module) -> None:
    """Merge the adapters into their layers, whose weights stay frozen; does nothing if there are none."""
    for name, layer in list(_adapted(model)):
        if not layer.merged:
            layer.merge()
        model.set_submodule(name, layer.get_base_layer())
        model.__dict__.pop("peft_config", None)


def _no_fast_path(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
    """Does nothing, but a hook keeps PyTorch's encoder from its fast path in eval mode, which would bypass the adapters."""


def _adapted(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter of :func:`adapt`, under each of their names."""
    for name, module in model.named_modules(remove_duplicate=False):
        inner = getattr(module, "lora_A", None)
        if isinstance(inner, torch.nn.ModuleDict) and ADAPTER in inner:
            yield name, module
