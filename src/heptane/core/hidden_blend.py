"""Blend the output of one module of a model with that of partner samples, for mixup of hidden features."""

from __future__ import annotations

import copy
from collections.abc import MutableMapping
from typing import Any

from heptane.base.errors import InputError, did_you_mean
from heptane.base.lazy import torch
from heptane.base.tree import select_rows
from heptane.core.targets import blend
from heptane.model.names import without_compiled
from heptane.model.probe import probe_output


class HiddenBlend:
    """A forward hook that blends the output of one module while a draw is pending. Evaluation is unaffected.

    If the whole global batch is in one pass, the partners are among its rows. Otherwise the partners form the second half of
    the rows, which is dropped after blending, so that pairs may cross micro-batches and workers.
    """

    def __init__(self, model: torch.nn.Module, layer: str, sample: Any = None) -> None:
        names = {without_compiled(name): name for name, module in model.named_modules() if name}
        if layer not in names and layer not in names.values():
            raise InputError(
                f"Mixup.layer={layer!r} is not a module of the model{did_you_mean(layer, names)}: see model.named_modules()"
            )
        self.layer = layer
        layer = names.get(layer, layer)
        self.pending: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.masks_wait = not _mask_acts_before(model, model.get_submodule(layer), sample)
        self.handle = model.get_submodule(layer).register_forward_hook(self._hook)

    def check_used(self) -> None:
        """Refuse a module that the last forward pass did not call: the targets were blended, and nothing else was."""
        if self.pending is not None:
            self.pending = None
            raise InputError(f"Mixup.layer={self.layer!r} did not run in the forward pass; name a module that does")

    def _hook(self, module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
        if self.pending is None:
            return None
        lam, partner = self.pending
        self.pending = None
        num_rows = len(lam) * (2 if partner is None else 1)
        if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.shape[:1] != (num_rows,):
            found = f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else f"type {type(output).__name__}"
            raise InputError(
                f"Mixup.layer={self.layer!r} gives an output of {found}: expected a floating-point tensor of shape "
                f"({num_rows}, ...), one row per sample"
            )
        if partner is not None:
            return blend(output, output[partner], lam)
        own, others = output.chunk(2)
        return blend(own, others, lam)


def pair_inputs(inputs: Any, partners: Any, whole: bool, masks_wait: bool) -> Any:
    """Inputs for a model whose hidden features are blended: samples, followed by their partners.

    Args:
        inputs, partners: tensors, or mappings of tensors, of the same shapes.
        whole: ``inputs`` are the whole global batch; it contains the partners, so nothing is appended.
        masks_wait: masks act after the blend. Then each row gets the union of its own mask and its partner's.
    """
    if isinstance(inputs, MutableMapping):
        found = copy.copy(inputs)
        for key, own in inputs.items():
            if masks_wait and is_mask(key, own):
                longer = torch.minimum if str(key).endswith("key_padding_mask") else torch.maximum
                found[key] = longer(own, partners[key])
            else:
                found[key] = pair_inputs(own, partners[key], whole, masks_wait)
        return found
    return inputs if whole or not isinstance(inputs, torch.Tensor) else torch.cat([inputs, partners])


def is_mask(key: Any, value: Any) -> bool:
    """Whether an entry of a batch, such as ``attention_mask``, marks the positions that count."""
    return str(key).endswith("mask") and isinstance(value, torch.Tensor) and value.ndim > 1


def _mask_acts_before(model: torch.nn.Module, module: torch.nn.Module, sample: Any) -> bool:
    """Whether the output of ``module`` depends on a mask among the inputs, so that each sample must keep its own mask."""
    if not isinstance(sample, MutableMapping) or not any(is_mask(key, value) for key, value in sample.items()):
        return False
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda _, args, output: seen.append(output))
    try:
        for stop in (None, 1):
            tried = copy.copy(select_rows(sample, slice(2)))
            for key, value in sample.items():
                if is_mask(key, value):
                    tried[key] = torch.zeros_like(tried[key])
                    tried[key][:, :stop] = 1
            probe_output(model, tried)
    finally:
        handle.remove()
    tensors = all(isinstance(output, torch.Tensor) for output in seen) and len(seen) == 2
    return tensors and not torch.equal(*seen)
