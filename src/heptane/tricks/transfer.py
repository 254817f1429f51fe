"""Transfer learning: start from somebody else's weights, with a new head, a rate per depth and gradual unfreezing.

Equation
    rate of group l-1 = rate of group l / factor; the head, the last of g groups, has the full rate (factor 2.6).
    groups that train at a step = min(g, g - frozen + floor(step / (every epochs * steps per epoch))).

Source
    Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification" (ULMFiT), arXiv:1801.06146,
    section 3.2 (discriminative fine-tuning) and section 3.3 (gradual unfreezing).

Meets the loop at
    Before the loop: the model (load, swap the head, freeze) and the optimizer (all groups, up front). With gradual
    unfreezing the loop runs phase by phase, and wraps the model for data parallelism again at each.

Costs, and when it does not help
    Nothing per step; frozen groups save their backward pass. The gain is largest on little data (TREC-6: error 10.67%
    to 5.69%) and shrinks as the data grow; weights from a far domain or image size may not pay at all.
    A new head sends large gradients at first: ``lr_scaling`` warms the rate up in its first epochs, on all groups alike.
    The factor compounds. The paper's network has three LSTM layers; over 20 groups a factor of 2.6 leaves the first one
    1e-8 of the rate, which is freezing: use 1.1 to 1.3 on a deep network.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_bool, check_choice, check_names, check_range
from heptane.base.lazy import torch
from heptane.model.names import without_compiled
from heptane.pretrained.anatomy import Anatomy, anatomy
from heptane.pretrained.features import FeatureCache, cache_features
from heptane.pretrained.freezing import (
    count_frozen,
    freeze,
    frozen_modes,
    head_layer,
    param_groups,
    restore_freezing,
    swap_head,
    train_mode,
)
from heptane.pretrained.load import load_weights
from heptane.pretrained.lora import adapt

if TYPE_CHECKING:
    from heptane.core.run import Phase, Run

MODES = ("head", "head-first", "gradual", "full", "auto")
_SLACK = 1e-9  # of a period: keeps a step that lies on a boundary there when the period is a rounded product


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Start from pretrained weights.

    Example:
        >>> Transfer(freeze=-1, unfreeze_every_epochs=1).phases(total_steps=40, steps_per_epoch=10, num_groups=3)
        [(0, 2), (10, 1), (20, 0)]
    """

    weights: str | None = None
    """To start from: a file (.safetensors, .pth, .pt, .bin, .ckpt), the folder of a run or of a Hugging Face model,
    efficientnet-lite0, timm:NAME, hf:NAME or hf:FOLDER; None: the weights that the model holds."""
    swap_head: bool = True
    """Replace the classifier when its number of outputs is not the number of classes."""
    mode: str | None = None
    """What trains: head (it alone), head-first (it alone for head_epochs, then all), gradual (a group more at a time, all by
    half of the run), full, or auto: head, gradual or full, by labels per class and a short probe. None: as freeze says."""
    head_epochs: float = 1.0
    """Epochs in which the head trains alone with mode head-first, above 0."""
    freeze: int = 0
    """Groups to freeze, from the first, at least 0 (no more than you froze yourself); -1: all but the head."""
    unfreeze_every_epochs: float = 0.0
    """Epochs after which one more group, from the last, is unfrozen, at least 0; 0: never."""
    groups: tuple[str, ...] = ()
    """What is frozen, and has its rate, together, from the input to the output: names of modules, or patterns with *; joined
    by commas as a flag. The head is added. Empty: timm's or transformers' own groups, else blocks in their order of use."""
    rate_factor: float = 2.6
    """Factor between the rate of a group and that of the one before it, at least 1; 1: equal rates."""
    min_match: float = 0.5
    """Least share of the parameters outside the head that the file must hold, in [0, 1]."""

    lora_rank: int = 0
    """Rank of adapters beside the linear layers, which train in place of these, at least 0; 0: none. With freeze=0."""
    lora_alpha: float | None = None
    """Their weight is alpha / rank; alpha is above 0, None is the rank."""
    cache: str = "auto"
    """Where what the frozen groups give is kept, computed once: memory, disk, auto (memory, or if that is short the disk) or
    off. It needs data in memory whose inputs do not change; the run's notes say whether it was done, or why not."""
    cache_dtype: str = "auto"
    """Of what is kept: fp32, fp16, bf16, or auto, as it is computed."""

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
                f"Transfer.lora_rank={self.lora_rank} freezes all but adapters and head by itself: leave freeze 0"
            )
        check_choice("Transfer.cache", self.cache, ("auto", "memory", "disk", "off"))
        check_choice("Transfer.cache_dtype", self.cache_dtype, ("auto", "fp32", "fp16", "bf16"))
        if self.unfreeze_every_epochs and not self.freeze:
            every = self.unfreeze_every_epochs
            raise InputError(f"Transfer.unfreeze_every_epochs={every:g} has nothing to unfreeze: set freeze, say to -1")
        for name in ("freeze", "unfreeze_every_epochs", "lora_rank"):
            if self.mode is not None and getattr(self, name):
                value = getattr(self, name)
                raise InputError(f"Transfer.mode={self.mode!r} and {name}={value:g} both say what is frozen: leave one out")

    @property
    def first_frozen(self) -> int:
        """Groups that are frozen at first, as ``freeze`` counts them."""
        return -1 if self.mode in ("head", "head-first", "gradual") else self.freeze

    def anatomy(self, model: torch.nn.Module, inputs: Any, labels: Any = None) -> Anatomy:
        """The groups that are frozen, and have their rates, together; see :func:`heptane.anatomy`."""
        return anatomy(model, inputs, labels, groups=self.groups)

    def load(self, model: torch.nn.Module) -> list[str]:
        """Load the weights, if there are any; returns what is to be said of them."""
        if self.weights is None:
            return []
        report = load_weights(model, self.weights, min_match=self.min_match)
        return [f"weights: {line}" for line in str(report).splitlines()]

    def prepare(
        self, model: torch.nn.Module, num_classes: int | None, seed: int | None = None, groups: Anatomy | None = None
    ) -> list[str]:
        """Load, swap the head and freeze, in that order; returns a sentence for the log on each thing done.

        ``seed`` draws the new head's values, leaving PyTorch's generator as it was; None draws them from that generator.
        """
        said = self.load(model) + self.fit_head(model, num_classes, seed, groups or anatomy(model, groups=self.groups))
        return said + self.apply_freezing(model, groups or anatomy(model, groups=self.groups), seed)

    def fit_head(self, model: torch.nn.Module, num_classes: int | None, seed: int | None, groups: Anatomy) -> list[str]:
        """Swap the head where it has not as many outputs as there are classes; a weight that it shared is its own then, so
        that the groups are to be looked for again."""
        if not self.swap_head:
            return []
        if num_classes is None:
            return ["head kept: loss and targets do not say how many classes there are"]
        outputs = head_layer(model, groups.head)[1].weight.shape[0]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            name = swap_head(model, num_classes, groups.head) or type(model).__name__
        done = (
            f"has {outputs} outputs already" if outputs == num_classes else f"replaced: {outputs} -> {num_classes} outputs"
        )
        return [f"head {without_compiled(name)} {done}"]

    def apply_freezing(self, model: torch.nn.Module, groups: Anatomy, seed: int | None = None) -> list[str]:
        """Put adapters beside the layers if they are asked for, and freeze what is frozen at first."""
        said = []
        if self.first_frozen or self.rate_factor > 1:
            said.append(f"{len(groups.layers)} groups from the input to the output, by {groups.by}")
        if self.lora_rank:
            head = None if groups.head is None else model.get_submodule(groups.head)
            said.append(adapt(model, self.lora_rank, self.lora_alpha, head, seed))
        layers = groups.layers
        frozen = count_frozen("Transfer.freeze", self.first_frozen, len(layers))
        if frozen:
            freeze(model, frozen, groups)
            said.append(f"frozen: the first {frozen} of {len(layers)} groups, up to {layers[frozen - 1].name}")
        if layers and not any(parameter.requires_grad for parameter in model.parameters()):
            raise InputError(f"{type(model).__name__} has no parameter that trains; call requires_grad_(True) on some")
        if self.rate_factor > 1 and len(layers) > 1 and not (self.mode == "head" and frozen == len(layers) - 1):
            least = self.rate_factor ** (1 - len(layers))
            first = f"{layers[0].name} has {least:.1e} of the head's"
            said.append(f"learning rates fall {self.rate_factor:g} times per group, {len(layers)} groups: {first}")
        return said

    def param_groups(self, model: torch.nn.Module, lr: float, groups: Anatomy | None = None) -> list[dict[str, Any]]:
        """All of the optimizer's groups, up front; see :func:`param_groups`."""
        return param_groups(model, lr, self.rate_factor, groups or anatomy(model, groups=self.groups))

    def phases(self, total_steps: int, steps_per_epoch: int, num_groups: int) -> list[tuple[int, int]]:
        """(first step, frozen groups) for each stretch of steps with the same groups frozen; the first starts at 0."""
        check_range("total_steps", total_steps, 1, whole=True)
        check_range("steps_per_epoch", steps_per_epoch, 1, whole=True)
        frozen = count_frozen("Transfer.freeze", self.first_frozen, num_groups)
        every_steps, at_once = self.unfreeze_every_epochs * steps_per_epoch, 1
        if self.mode == "gradual" and frozen:
            every_steps = total_steps / 2 / frozen
        elif self.mode == "head-first":
            every_steps, at_once = self.head_epochs * steps_per_epoch, frozen
        starts = {0: frozen}
        for times in range(1, frozen // at_once + 1 if every_steps and frozen else 1):
            due = (times - _SLACK) * every_steps
            if due <= total_steps - 1:
                starts[ceil(due)] = frozen - times * at_once
        return list(starts.items())


class Stages:
    """Fills the slot ``stages``: what of the model trains in a phase. In a run without transfer too, where what the user
    has frozen stays frozen.

    Args:
        transfer: None where it is off.
        groups: what is frozen, and has its rate, together.
    """

    def __init__(self, transfer: Transfer | None, groups: Anatomy | None) -> None:
        self.transfer, self.groups = transfer, groups
        self._found: dict[Phase, FeatureCache | None] = {}

    @property
    def mode(self) -> str | None:
        return self.transfer.mode if self.transfer else None

    def settle(self, run: Run, phase: Phase) -> FeatureCache | None:
        if phase.frozen is not None:
            freeze(run.model, phase.frozen, self.groups)
        self.modes(run.model)
        if self.transfer is None:
            return None
        if phase not in self._found:
            self._found = {phase: self._features(run, phase)}
        return self._found[phase]

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
        said = f"frozen part not computed once: {found}" if isinstance(found, str) else found.said
        run.notes += [said] if said not in run.notes else []  # many phases may have the same reason
        return None if isinstance(found, str) else found

    def starts(self, total_steps: int, steps_per_epoch: int, num_groups: int) -> list[tuple[int, int]]:
        if self.transfer is None or not self.transfer.first_frozen:
            return []
        return self.transfer.phases(total_steps, steps_per_epoch, num_groups)

    def leave(self, model: torch.nn.Module) -> None:
        restore_freezing(model)
