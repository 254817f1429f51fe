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
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from typing import Any

from heptane.base.errors import InputError, check_bool, check_choice, check_names, check_range, nearest
from heptane.base.lazy import torch
from heptane.model.names import without_compiled
from heptane.pretrained.anatomy import Anatomy, anatomy
from heptane.pretrained.layers import find_head
from heptane.pretrained.lora import adapt, merge
from heptane.pretrained.weights import load_weights

MODES = ("head", "head-first", "gradual", "full", "auto")
_SLACK = 1e-9  # of a period: keeps a step that lies on a boundary there when the period is a rounded product
_STOPPED = "_heptane_stopped"  # on a model: names of those of its parameters whose gradients freeze() stopped
_FOUND = "_heptane_found"  # on a model in a run: what trained before, and what freeze() had stopped


def swap_head(model: torch.nn.Module, num_classes: int, name: str | None = None) -> str:
    """Replace the classifier by a fresh one of ``num_classes`` outputs, unless it has that many already.

    The new layer has PyTorch's usual initial values, on the old one's device and in its dtype, and trains. A transformers
    model's ``num_labels`` follows.

    Args:
        model: changed in place.
        num_classes: outputs wanted, 1 or more.
        name: the classifier's, such as ``hp.anatomy(model, inputs).head``; None: the last ``Linear`` as registered, or else
            the last 1x1 ``Conv2d``.

    Returns:
        The classifier's dotted name.

    Raises:
        InputError: no classifier, a lazy one without a shape yet, or a model that is itself the layer to replace.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1000))
        >>> swap_head(net, 10), net[1].out_features
        ('1', 10)
    """
    check_range("num_classes", num_classes, 1, whole=True)
    name, old = _head(model, name)
    if old.weight.shape[0] == num_classes:
        return name
    if not name:
        raise InputError(f"the model is one {type(old).__name__}; build it with num_classes={num_classes} instead")
    like: dict[str, Any] = {"bias": old.bias is not None, "dtype": old.weight.dtype}
    if isinstance(old, torch.nn.Linear):
        new: torch.nn.Module = torch.nn.Linear(old.in_features, num_classes, **like)
    else:
        new = torch.nn.Conv2d(old.in_channels, num_classes, 1, old.stride, old.padding, **like)  # type: ignore[arg-type]
    new.to(old.weight.device).train(old.training)
    for other, module in list(model.named_modules(remove_duplicate=False)):
        if module is old:
            model.set_submodule(other, new)
    for owner in (model, getattr(model, "config", None)):  # transformers' own loss goes by it
        if getattr(owner, "num_labels", None) == len(old.weight):
            owner.num_labels = num_classes  # type: ignore[union-attr]
    return name


def layer_groups(model: torch.nn.Module, groups: Anatomy | None = None) -> list[tuple[str, list[torch.nn.Parameter]]]:
    """The parameters in groups from the input to the output; the head is in the last group.

    Args:
        model: any module.
        groups: its :func:`heptane.anatomy`; None: without a sample, by the library's own grouping, or as registered.
            Then containers (``Sequential``, ``ModuleList``, ``ModuleDict``), wrappers and bodies that hold a stack of like
            blocks are opened; other modules with weights are one group each. A normalisation joins the layer before it.

    Returns:
        (name, parameters) per group; each parameter once, one shared with the head in the head's group, and the
        model's own (such as a class token) in the first.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 2))
        >>> [(name, len(parameters)) for name, parameters in layer_groups(net)]
        [('0', 4), ('2', 2)]

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2.
    """
    return [(group.name, group.parameters) for group in (groups or anatomy(model)).groups(model)]


def freeze(model: torch.nn.Module, num_groups: int, groups: Anatomy | None = None) -> list[str]:
    """Stop the gradients of the first groups, and start again those of the others that it stopped before.

    What you froze yourself stays frozen. Call it before the optimizer and the data-parallel wrap see the model, and
    :func:`train_mode` instead of ``model.train()`` afterwards.

    Args:
        model: changed in place.
        num_groups: how many, from the input; 0 to one less than there are, or -1 for all but the head.
        groups: the model's :func:`heptane.anatomy`; None: without a sample, by its library's grouping or as registered.

    Returns:
        The names of the frozen groups.

    Raises:
        InputError: nothing would be left to train.

    Example:
        >>> freeze(torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)), -1)
        ['0']

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.3.
    """
    layers = layer_groups(model, groups)
    count = _count_frozen("num_groups", num_groups, len(layers))
    frozen = {id(parameter) for _, parameters in layers[:count] for parameter in parameters}
    stopped: set[str] = model.__dict__.setdefault(_STOPPED, set())
    for name, parameter in model.named_parameters():
        if id(parameter) in frozen and parameter.requires_grad:
            parameter.requires_grad_(False)
            stopped.add(name)
        elif id(parameter) not in frozen and name in stopped:
            parameter.requires_grad_(True)
            stopped.discard(name)
    return [name for name, _ in layers[:count]]


def remember(model: torch.nn.Module) -> None:
    """Note what trains before a run, and what :func:`freeze` had stopped, for :func:`leave`."""
    trains = [
        (module, name, p.requires_grad)
        for module in model.modules()
        for name, p in module._parameters.items()
        if p is not None
    ]
    model.__dict__[_FOUND] = trains, set(model.__dict__.get(_STOPPED, ()))


def leave(model: torch.nn.Module) -> None:
    """After a run: adapters are merged, and what trained before it does so again; nothing where none was noted."""
    if not isinstance(model, torch.nn.Module):
        return  # it was refused
    merge(model)
    if _FOUND not in model.__dict__:
        return
    trains, model.__dict__[_STOPPED] = model.__dict__.pop(_FOUND)
    for module, name, trained in trains:
        parameter = module._parameters.get(name)
        if parameter is not None:
            parameter.requires_grad_(trained)


def train_mode(model: torch.nn.Module, groups: Anatomy | None = None) -> torch.nn.Module:
    """``model.train()``, and then what is frozen back in eval mode, so that its BatchNorm keeps its statistics.

    Args:
        model: changed in place.
        groups: the model's :func:`heptane.anatomy`; None: without a sample, by its library's grouping or as registered.

    Returns:
        The model.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Conv2d(2, 2, 1))
        >>> _ = freeze(net, 1)
        >>> [layer.training for layer in train_mode(net)]
        [False, False, True]
    """
    _set_modes(model, groups, set())
    return model


def frozen_modes(model: torch.nn.Module, groups: Anatomy | None = None) -> None:
    """:func:`train_mode` in a run without transfer: what only the user had frozen trains on, as in a hand-written loop."""
    stopped = model.__dict__.get(_STOPPED, set())
    found = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    ours = {id(parameter) for name, parameter in model.named_parameters() if name in stopped}
    _set_modes(model, groups, found - ours)


def _set_modes(model: torch.nn.Module, groups: Anatomy | None, theirs: set[int]) -> None:
    """Train mode, and eval mode for what is frozen, unless all of it was by somebody else: ``theirs``, by ``id``."""

    def held(parameters: Iterable[torch.nn.Parameter]) -> bool:
        parameters = list(parameters)
        frozen = bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
        return frozen and not {id(parameter) for parameter in parameters} <= theirs

    model.train()
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for module in model.modules():
        if held(module.parameters()):
            module.eval()
    for group in (groups or anatomy(model)).groups(model):
        if held(group.parameters):
            for norm in group.bare_norms:
                norm.eval()


def param_groups(
    model: torch.nn.Module, lr: float, factor: float = 2.6, groups: Anatomy | None = None
) -> list[dict[str, Any]]:
    """An optimizer's parameter groups, one per depth, each with its own rate; the frozen ones are there too.

    Args:
        model: after its head was swapped.
        lr: the rate of the last group, the head; more than 0.
        factor: each group has the rate of the next one divided by this, 1 (all equal) or more.
        groups: the model's :func:`heptane.anatomy`; None: without a sample, by its library's grouping or as registered.

    Returns:
        A dict per group, from the input, with ``params``, ``lr`` and ``name``.

    Raises:
        InputError: ``lr`` or ``factor`` out of range, or a model without parameters.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> optimizer = torch.optim.SGD(param_groups(net, 0.26), lr=0.26)
        >>> [(group["name"], round(group["lr"], 6)) for group in optimizer.param_groups]
        [('0', 0.1), ('1', 0.26)]

    Source: Howard & Ruder 2018, arXiv:1801.06146, section 3.2.
    """
    check_range("lr", lr, 0, low_open=True)
    check_range("factor", factor, 1)
    layers = layer_groups(model, groups)
    if not layers:
        raise InputError(f"{type(model).__name__} has no parameters: there is nothing to train")
    rates = [lr * (1 / factor) ** (len(layers) - 1 - depth) for depth in range(len(layers))]
    return [
        {"params": params, "lr": rate, "name": without_compiled(name)}
        for (name, params), rate in zip(layers, rates, strict=True)
    ]


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
        return said + self.hold(model, groups or anatomy(model, groups=self.groups), seed)

    def fit_head(self, model: torch.nn.Module, num_classes: int | None, seed: int | None, groups: Anatomy) -> list[str]:
        """Swap the head where it has not as many outputs as there are classes; a weight that it shared is its own then, so
        that the groups are to be looked for again."""
        if not self.swap_head:
            return []
        if num_classes is None:
            return ["head kept: loss and targets do not say how many classes there are"]
        outputs = _head(model, groups.head)[1].weight.shape[0]
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            name = swap_head(model, num_classes, groups.head) or type(model).__name__
        done = (
            f"has {outputs} outputs already" if outputs == num_classes else f"replaced: {outputs} -> {num_classes} outputs"
        )
        return [f"head {without_compiled(name)} {done}"]

    def hold(self, model: torch.nn.Module, groups: Anatomy, seed: int | None = None) -> list[str]:
        """Put adapters beside the layers if they are asked for, and freeze what is frozen at first."""
        said = []
        if self.first_frozen or self.rate_factor > 1:
            said.append(f"{len(groups.layers)} groups from the input to the output, by {groups.by}")
        if self.lora_rank:
            head = None if groups.head is None else model.get_submodule(groups.head)
            said.append(adapt(model, self.lora_rank, self.lora_alpha, head, seed))
        layers = groups.layers
        frozen = _count_frozen("Transfer.freeze", self.first_frozen, len(layers))
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
        frozen = _count_frozen("Transfer.freeze", self.first_frozen, num_groups)
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


def _head(model: torch.nn.Module, name: str | None = None) -> tuple[str, torch.nn.Linear | torch.nn.Conv2d]:
    found = find_head(model) if name is None else (name, _layer(model, name))
    if found is None:
        remedy = "set swap_head=False and give the model the right number of outputs yourself"
        raise InputError(f"{type(model).__name__} does not end in a Linear or a 1x1 Conv2d that could be its head; {remedy}")
    if torch.nn.parameter.is_lazy(found[1].weight):
        raise InputError(f"{found[0] or 'the model'} is lazy, without a shape yet; run one batch through the model first")
    return found


def _layer(model: torch.nn.Module, name: str) -> torch.nn.Linear | torch.nn.Conv2d:
    layers = {key: module for key, module in model.named_modules() if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))}
    if name not in layers:
        raise InputError(f"name={name!r} is no Linear or Conv2d of the model{nearest(name, layers)}")
    return layers[name]


def _count_frozen(field: str, value: int, num_groups: int) -> int:
    """How many groups ``value`` means; -1 is all but the head."""
    check_range(field, value, -1, whole=True)
    count = max(num_groups - 1, 0) if value == -1 else value
    if value and count >= num_groups:
        raise InputError(f"{field}={value} leaves nothing of {num_groups} groups to train: expected -1 to {num_groups - 1}")
    return count
