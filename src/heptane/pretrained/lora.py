"""Low-rank adapters (LoRA), by peft: beside each frozen linear layer a product of two thin matrices, which trains.

Equation
    W x + (alpha / r) B A x, with A (r, inputs) drawn at random and B (outputs, r) zero: at first it is the layer itself.

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
    """Put adapters beside each linear layer but the head, and stop the gradients of all else but the head; says what it did.

    Args:
        model: changed in place; it computes what it did.
        rank: r, 1 or more.
        alpha: of the equation; None: r, a factor of 1.
        head: trains as it is.
        seed: draws A, leaving PyTorch's generator as it was; None draws from that generator.

    Raises:
        InputError: peft is missing, or the model has no linear layer but its head.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError('Transfer.lora_rank needs peft, which is missing: pip install "heptane[lora]"') from error
    merge(model)
    targets: dict[torch.nn.Module, list[str]] = {}  # each has a name, or more
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is torch.nn.Linear and module is not head and name:
            targets.setdefault(module, []).append(name)
    if not targets:
        raise InputError(f"Transfer.lora_rank={rank}: {type(model).__name__} has no linear layer but its head: set it to 0")
    exactly = "|".join(re.escape(name) for name, *_ in targets.values())  # of a list peft takes what ends in a name, too
    config: dict[str, Any] = {"r": rank, "lora_alpha": rank if alpha is None else alpha, "target_modules": exactly}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(**config), model, adapter_name=ADAPTER)
    for first, *others in targets.values():
        for name in others:
            model.set_submodule(name, model.get_submodule(first))
    for _, layer in _adapted(model):
        layer.register_forward_hook(_is_called)
    added = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for parameter in head.parameters() if head else ():
        parameter.requires_grad_(True)
    whole = sum(p.numel() for p in model.parameters()) - added
    return (
        f"adapters of rank {rank} in {len(targets)} linear layers: {added:,} parameters, {added / whole:.1%} of the model's"
    )


def merge(model: torch.nn.Module) -> None:
    """Add the adapters to the layers that they belong to, whose gradients stay stopped; nothing where there are none."""
    for name, layer in list(_adapted(model)):
        if not layer.merged:
            layer.merge()
        model.set_submodule(name, layer.get_base_layer())
        model.__dict__.pop("peft_config", None)


def _is_called(layer: torch.nn.Module, inputs: Any, output: Any) -> None:
    """Does nothing; but of layers without a hook PyTorch's encoder takes the weights, without adapters, in eval mode."""


def _adapted(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter of :func:`adapt`, by each of their names."""
    for name, module in model.named_modules(remove_duplicate=False):
        inner = getattr(module, "lora_A", None)
        if isinstance(inner, torch.nn.ModuleDict) and ADAPTER in inner:
            yield name, module
