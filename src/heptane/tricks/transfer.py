"""Transfer learning: start from pretrained weights, with a new head, a learning rate per depth and gradual unfreezing.

Equation
    lr of group l-1 = lr of group l / factor; the head, the last of g groups, has the full learning rate (factor 2.6).
    Groups that train at a step: min(g, g - frozen + floor(step / (every_epochs * steps_per_epoch))).

Source
    Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (ULMFiT), arXiv:1801.06146,
    section 3.2 (discriminative fine-tuning) and section 3.3 (gradual unfreezing).

Meets the loop at
    Before the loop: the model (load weights, replace the head, freeze) and the optimizer (all parameter groups, up front).
    With gradual unfreezing the loop runs in phases, and the model is wrapped for data parallelism anew in each.

Costs, and when it does not help
    Nothing per step; frozen groups save their backward pass. The gain is largest on small data (TREC-6: error 10.67% to
    5.69%) and shrinks as data grow; weights from a distant domain or image size may not help at all.
    A new head produces large gradients at first: ``lr_scaling`` adds a warm-up, the same for all groups.
    The factor compounds. The paper's network has three LSTM layers; over 20 groups a factor of 2.6 leaves the first one
    1e-8 of the learning rate, which amounts to freezing it: use 1.1 to 1.3 on a deep network.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_bool, check_choice, check_names, check_range
from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.core.run import Phase
from heptane.data.batches import BatchTransform, Source
from heptane.distributed.workers import Worker, all_gather
from heptane.model.names import without_compiled
from heptane.pretrained.anatomy import Anatomy, anatomy
from heptane.pretrained.features import FeatureCache, cache_features
from heptane.pretrained.freezing import (
    count_frozen,
    freeze,
    frozen_modes,
    head_layer,
    layer_groups,
    param_groups,
    restore_freezing,
    swap_head,
    train_mode,
)
from heptane.pretrained.load import load_weights
from heptane.pretrained.lora import adapt

if TYPE_CHECKING:
    from heptane.core.run import Run

MODES = ("head", "head-first", "gradual", "full", "auto")
_SLACK = 1e-9  # in periods: absorbs rounding of the period, so that a step on a boundary stays on it


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Settings of transfer learning.

    Example:
        >>> Transfer(freeze=-1, unfreeze_every_epochs=1).phases(total_steps=40, steps_per_epoch=10, num_groups=3)
        [(0, 2), (10, 1), (20, 0)]
    """

    weights: str | None = None
    """Source of the weights: a file (.safetensors, .pth, .pt, .bin, .ckpt), the folder of a run or of a Hugging Face model,
    efficientnet-lite0, timm:NAME, hf:NAME or hf:FOLDER; None: the model's current weights."""
    swap_head: bool = True
    """Replace the classifier if its number of outputs differs from the number of classes."""
    mode: str | None = None
    """What trains: head (only the head), head-first (the head for head_epochs, then everything), gradual (one more group at
    a time, everything from half of the run on), full, or auto: head, gradual or full, by labels per class and a short probe.
    None: as freeze says."""
    head_epochs: float = 1.0
    """Epochs in which only the head trains with mode head-first, above 0."""
    freeze: int = 0
    """Groups to freeze, counted from the input, at least 0; -1: all but the head. What you froze yourself stays frozen."""
    unfreeze_every_epochs: float = 0.0
    """Epochs after which one more group is unfrozen, from the output back, at least 0; 0: never."""
    groups: tuple[str, ...] = ()
    """Layer groups, from the input to the output: names of modules, or patterns with *; separated by commas as a flag. The
    head is added. Each is frozen as a whole and has one learning rate. Empty: the groups of timm or transformers, else
    blocks in their order of use."""
    rate_factor: float = 2.6
    """Ratio of the learning rates of adjacent groups, at least 1; 1: equal learning rates."""
    min_match: float = 0.5
    """Smallest fraction of the parameters outside the head that the weights must provide, in [0, 1]."""

    lora_rank: int = 0
    """Rank of LoRA adapters, which train instead of the linear layers, at least 0; 0: none. Requires freeze=0."""
    lora_alpha: float | None = None
    """Scale of the adapters is alpha / rank; alpha is above 0, None: alpha = rank."""
    cache: str = "auto"
    """Where to cache frozen features: memory, disk, auto (memory, or disk if memory is short) or off. It needs data in
    memory whose inputs do not change; a note says whether features were cached, or why not."""
    cache_dtype: str = "auto"
    """Type of the cached features: fp32, fp16, bf16, or auto, the type in which they are computed."""

    def __post_init__(self) -> None:
        if isinstance(self.weights, os.PathLike):
            object.__setattr__(self, "weights", os.fspath(self.weights))
        if self.weights is not None and (not isinstance(self.weights, str) or not self.weights):
            raise InputError(f"Transfer.weights={self.weights!r}: expected a file, a folder, timm:NAME or hf:NAME, or None")
        check_bool("Transfer.swap_head", self.swap_head)
        check_names("Transfer.groups", self.groups)
        object.__setattr__(self, "groups", tuple(self.groups))
        if self.mode is not None:
            check_choice("Transfer.mode", self.mode, MODES)
        check_range("Transfer.head_epochs", self.head_epochs, 0, low_open=True)
        check_range("Transfer.freeze", self.freeze, -1, whole=True)
        check_range("Transfer.unfreeze_every_epochs", self.unfreeze_every_epochs, 0)
        check_range("Transfer.rate_factor", self.rate_factor, 1)
        check_range("Transfer.min_match", self.min_match, 0, 1)
        check_range("Transfer.lora_rank", self.lora_rank, 0, whole=True)
        if self.lora_alpha is not None:
            check_range("Transfer.lora_alpha", self.lora_alpha, 0, low_open=True)
        if self.lora_rank and self.freeze:
            raise InputError(
                f"Transfer.lora_rank={self.lora_rank} already freezes everything but adapters and head: set freeze=0"
            )
        check_choice("Transfer.cache", self.cache, ("auto", "memory", "disk", "off"))
        check_choice("Transfer.cache_dtype", self.cache_dtype, ("auto", "fp32", "fp16", "bf16"))
        if self.unfreeze_every_epochs and not self.freeze:
            every = self.unfreeze_every_epochs
            raise InputError(f"Transfer.unfreeze_every_epochs={every:g} has nothing to unfreeze: set freeze, say to -1")
        for name in ("freeze", "unfreeze_every_epochs", "lora_rank"):
            if self.mode is not None and getattr(self, name):
                value = getattr(self, name)
                raise InputError(f"Transfer.mode={self.mode!r} and {name}={value:g} both decide what is frozen: set one")

    @property
    def first_frozen(self) -> int:
        """Groups frozen at the start, as ``freeze`` counts them."""
        return -1 if self.mode in ("head", "head-first", "gradual") else self.freeze

    def anatomy(self, model: torch.nn.Module, inputs: Any, labels: Any = None) -> Anatomy:
        """The model's layer groups; see :func:`heptane.anatomy`."""
        return anatomy(model, inputs, labels, groups=self.groups)

    def with_mode(
        self, model: torch.nn.Module, groups: Anatomy, source: Source, place: BatchTransform, worker: Worker
    ) -> tuple[Transfer, str, list[str]]:
        """These settings with what mode "auto" comes to, measured on the weights that training starts from; why; notes."""
        if self.mode != "auto":
            return self, "", []
        from heptane.pretrained.choose_mode import choose_mode

        notes = self.load(model)
        with working("measuring how much of the model to train"):
            mode, why = all_gather(choose_mode(model, groups, source, place), worker)[0]
        return replace(self, mode=mode, weights=None), why, [*notes, f"mode {why}"]

    def load(self, model: torch.nn.Module) -> list[str]:
        """Load the weights, if any; return notes for the user."""
        if self.weights is None:
            return []
        report = load_weights(model, self.weights, min_match=self.min_match)
        return [f"weights: {line}" for line in str(report).splitlines()]

    def fit_head(self, model: torch.nn.Module, num_classes: int | None, seed: int | None, groups: Anatomy) -> list[str]:
        """Replace the head if its number of outputs differs from the number of classes; return notes for the user.

        A head that shared its weight with another layer no longer does, so the layer groups must be computed again.
        """
        if not self.swap_head:
            return []
        if num_classes is None:
            return ["head kept: the number of classes is unknown from the loss and targets"]
        outputs = head_layer(model, groups.head)[1].weight.shape[0]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            name = swap_head(model, num_classes, groups.head) or type(model).__name__
        done = "has {0} outputs already" if outputs == num_classes else "replaced: {0} -> {1} outputs"
        return [f"head {without_compiled(name)} {done.format(outputs, num_classes)}"]

    def apply_freezing(self, model: torch.nn.Module, groups: Anatomy, seed: int | None = None) -> list[str]:
        """Add LoRA adapters if requested, and freeze the groups that start frozen; return notes for the user."""
        notes = []
        if self.first_frozen or self.rate_factor > 1:
            notes.append(f"{len(groups.layers)} layer groups, by {groups.by}")
        if self.lora_rank:
            head = None if groups.head is None else model.get_submodule(groups.head)
            notes.append(adapt(model, self.lora_rank, self.lora_alpha, head, seed))
        layers = groups.layers
        frozen = count_frozen("Transfer.freeze", self.first_frozen, len(layers))
        if frozen:
            freeze(model, frozen, groups)
            notes.append(f"frozen: the first {frozen} of {len(layers)} groups, up to {layers[frozen - 1].name}")
        if layers and not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"{type(model).__name__} has no trainable parameter; call requires_grad_(True) on some")
        if self.rate_factor > 1 and len(layers) > 1 and not (self.mode == "head" and frozen == len(layers) - 1):
            least = self.rate_factor ** (1 - len(layers))
            first = f"{layers[0].name} has {least:.1e} of the head's"
            notes.append(f"learning rate divided by {self.rate_factor:g} per group, {len(layers)} groups: {first}")
        return notes

    def param_groups(self, model: torch.nn.Module, lr: float, groups: Anatomy | None = None) -> list[dict[str, Any]]:
        """The optimizer's parameter groups, all up front; see :func:`param_groups`."""
        return param_groups(model, lr, self.rate_factor, groups or anatomy(model, groups=self.groups))

    def phases(self, total_steps: int, steps_per_epoch: int, num_groups: int) -> list[tuple[int, int]]:
        """(first step, frozen groups) of each phase; the first starts at step 0."""
        check_range("total_steps", total_steps, 1, whole=True)
        check_range("steps_per_epoch", steps_per_epoch, 1, whole=True)
        frozen = count_frozen("Transfer.freeze", self.first_frozen, num_groups)
        every_steps, at_once = self.unfreeze_every_epochs * steps_per_epoch, 1
        if self.mode == "gradual" and frozen:
            every_steps = total_steps / 2 / frozen
        elif self.mode == "head-first":
            every_steps, at_once = self.head_epochs * steps_per_epoch, frozen
        starts = {0: frozen}
        for period in range(1, frozen // at_once + 1 if every_steps and frozen else 1):
            due = (period - _SLACK) * every_steps
            if due <= total_steps - 1:
                starts[ceil(due)] = frozen - period * at_once
        return list(starts.items())


class Stages:
    """Fills the slot ``stages``: what trains in each phase of a run. Without transfer, what the user froze stays frozen.

    Args:
        transfer: None if it is off.
        groups: the model's layer groups.
    """

    def __init__(self, transfer: Transfer | None, groups: Anatomy | None) -> None:
        self.transfer, self.groups = transfer, groups
        self._cached: dict[Phase, FeatureCache | None] = {}

    @property
    def mode(self) -> str | None:
        return self.transfer.mode if self.transfer else None

    def settle(self, run: Run, phase: Phase) -> FeatureCache | None:
        if phase.frozen is not None:
            freeze(run.model, phase.frozen, self.groups)
        self.modes(run.model)
        if self.transfer is None:
            return None
        if phase not in self._cached:
            self._cached = {phase: self._features(run, phase)}
        return self._cached[phase]

    def modes(self, model: torch.nn.Module) -> None:
        """Train mode, and eval mode for what is frozen."""
        if self.transfer is None:
            frozen_modes(model, self.groups)
        else:
            train_mode(model, self.groups)

    def _features(self, run: Run, phase: Phase) -> FeatureCache | None:
        assert self.transfer is not None
        if self.transfer.cache == "off" or all(parameter.requires_grad for parameter in run.model.parameters()):
            return None
        found = cache_features(run, phase, self.transfer.cache, self.transfer.cache_dtype)
        run.events.note(f"frozen features not cached: {found}" if isinstance(found, str) else found.note)
        return None if isinstance(found, str) else found

    def phases(self, model: torch.nn.Module, total_steps: int, steps_per_epoch: int) -> list[Phase]:
        if self.transfer is None or not self.transfer.first_frozen:
            return [Phase(0, total_steps)]
        starts = self.transfer.phases(total_steps, steps_per_epoch, len(layer_groups(model, self.groups)))
        stops = [start for start, _ in starts[1:]] + [total_steps]
        return [Phase(start, stop, frozen) for (start, frozen), stop in zip(starts, stops, strict=True)]

    @contextmanager
    def as_in_last(self, model: torch.nn.Module, phases: list[Phase]) -> Iterator[None]:
        if phases[-1].frozen is not None:
            freeze(model, phases[-1].frozen, self.groups)
        try:
            yield
        finally:
            if phases[0].frozen is not None:
                freeze(model, phases[0].frozen, self.groups)

    def leave(self, model: torch.nn.Module) -> None:
        restore_freezing(model)
