"""Plan a run: load the data, and choose the model, length, learning rate and tricks that the user did not set."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from math import ceil
from typing import Any

from heptane.base.clock import process_start
from heptane.base.device import default_device
from heptane.base.errors import InputError
from heptane.base.progress import EVERY_SECONDS, working
from heptane.cli import loading
from heptane.data import Data
from heptane.data.images.listing import Listing
from heptane.data.images.sources import list_images
from heptane.data.images.survey import survey
from heptane.data.load import holds_text
from heptane.pretrained.hubs import HUBS, cached, efficientnet_hub
from heptane.pretrained.models import check_known
from heptane.recommend import Choices, DataFacts, Machine, after_loading, before_loading
from heptane.recommend.timing import PIXEL_FLOPS
from heptane.session.settings import Choice, Settings
from heptane.tricks import Tricks, recommend

CHOSEN = ("model", "image_size", "batch_size", "epochs", "optimizer", "lr", "augment", "evaluate_every_epochs")
SHARE, LEAST_RESERVE = 0.06, 4.0  # share of a budget, and seconds, reserved for the last evaluation and the report
RACE = "a race trains every arm from scratch: it measures tricks, not weights"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """The plan of a run."""

    settings: Settings
    """all settings, given or chosen"""
    data: Data
    tricks: Tricks
    reasons: dict[str, str]
    """per trick, why it is on or off"""
    choices: Choices
    data_facts: DataFacts
    machine: Machine
    race: bool = False
    """whether it is the plan of each run of a race"""
    resumed: bool = False
    """whether the run is resumed with these settings"""
    deadline: float | None = None
    """``time.time()`` at which training ends, if there is a budget"""


@working("planning the run", after=EVERY_SECONDS)
def plan_run(
    settings: Settings,
    wanted: Choice,
    flags: argparse.Namespace,
    *,
    race: bool = False,
    data: Data | None = None,
    listing: Listing | None = None,
    planning: bool = False,
) -> Planned:
    """Load the data, and choose everything that was not given.

    Args:
        settings: the given settings.
        wanted: the requested tricks.
        flags: for flags that are not settings, such as ``fallback``.
        race: plan for a race, whose plain arm trains from scratch at a constant learning rate.
        data: data already loaded; None: load it.
        listing: its images, if they are listed already.
        planning: whether nothing will be trained, so that a few images are enough.
    """
    if settings.model is not None:
        check_known(settings.model)  # before anything is loaded or printed
    began, machine = process_start(), Machine.here(settings.device)
    budget = None if race else settings.budget_seconds
    if budget is not None:
        machine = measure_speed(machine, settings.device)
        left = budget - (time.time() - began) - max(LEAST_RESERVE, SHARE * budget)
        machine = replace(machine, seconds=max(left, 1.0))
    reads_text = data is None and listing is None and holds_text(settings.data, settings.text)
    if data is None and listing is None and not reads_text:
        listing = list_images(settings.data, label=settings.label, task=settings.task, skip_bad=settings.skip_bad)
    seen = survey(listing, settings.valid_fraction) if listing is not None else None
    given: dict[str, Any] = {f.name: getattr(settings, f.name) for f in fields(Settings)}
    given |= {"start": _weights(wanted), "computed_once": _can_cache_features(settings, wanted)}
    given["frozen_given"] = _names_frozen_layers(wanted) or "mode" in (wanted.own or {}).get("transfer", {})
    facts = DataFacts(kind="text" if reads_text else "arrays", num_train=1, num_classes=None)
    if seen is not None:
        facts = DataFacts(kind="images", num_train=seen.num_train, num_classes=len(seen.counts) or None, survey=seen)
    known = seen is not None or reads_text
    start = _start(settings, wanted, race=race, find=cached.find_text if reads_text else cached.find_pretrained)
    choices = before_loading(facts, machine, given, start if known else None)
    size = choices["image_size"] if seen is not None else settings.image_size
    if data is None:
        scale = pixel_scale(choices["model"] if seen else settings.model, choices["start"])
        model = choices["model"] if reads_text else settings.model  # text is cut by the tokenizer of the model
        data = loading.load(replace(settings, image_size=size, model=model), flags, scale, listing, planning=planning)
    facts = DataFacts.of(data, seen)
    if settings.augment not in (None, "none") and len(data.input_shape) != 3:
        raise InputError(f"--augment {settings.augment} needs images, which {data.name} does not hold: leave it out")
    if not known:
        choices = before_loading(facts, machine, given)
    if budget is not None:
        left = budget - (time.time() - began) - max(LEAST_RESERVE, SHARE * budget)
        machine = replace(machine, seconds=max(left, 0.5))
    cycle = not race and wanted.resolve(recommend())[0].cyclical is not None
    choices = after_loading(facts, machine, given, choices, cycle=cycle)
    chosen = {name: choices[name] for name in CHOSEN if name in choices.made}
    settings = replace(settings, **chosen, budget=None)
    settings, tricks, reasons = decide(settings, wanted, data, choices)
    deadline = None if budget is None else began + budget - max(LEAST_RESERVE, SHARE * budget)
    return Planned(
        settings=settings,
        data=data,
        tricks=tricks,
        reasons=reasons,
        choices=choices,
        data_facts=facts,
        machine=machine,
        race=race,
        resumed=bool(flags.resume),
        deadline=deadline,
    )


def decide(settings: Settings, wanted: Choice, data: Data, choices: Choices) -> tuple[Settings, Tricks, dict[str, str]]:
    """The settings with a learning rate, the tricks, and the reason for each."""
    from heptane.base.lazy import torch
    from heptane.core import optimizers
    from heptane.distributed.workers import launched_workers
    from heptane.tricks.lr_scaling import scale_lr

    assert settings.optimizer is not None
    name = settings.optimizer.lower()
    momentum, decay = settings.momentum, settings.weight_decay
    trial = optimizers.optimizer_factory(name, settings.lr or 1.0, momentum=momentum, weight_decay=decay)
    advice = recommend(
        epochs=settings.epochs or 1.0,
        steps=ceil(len(data.train[1]) / (settings.batch_size or 1) * (settings.epochs or 1.0)),
        classes=data.num_classes is not None,
        momentum=optimizers.has_momentum(trial),
        weights=choices["start"],
        mode="head" if choices["start"] and not choices["frozen_groups"] and not _names_frozen_layers(wanted) else None,
        freeze=choices["frozen_groups"],
        num_gpus=torch.cuda.device_count() if settings.device is None else 0,
        launched=launched_workers(),
        blends=data.kind != "text",
    )
    if choices["start"]:
        advice[1]["transfer"] = choices.made["start"].why
    elif settings.model and not settings.model.startswith(tuple(HUBS)):
        advice[1]["transfer"] = choices.made["model"].why if choices.made["model"].why != "given" else advice[1]["transfer"]
    tricks, reasons = wanted.resolve(advice)
    if launched_workers() > 1 and tricks.data_parallel is None:
        raise InputError(
            f"torchrun started {launched_workers()} workers but data parallel is off, so all would train into the same "
            "folder: turn it on with --workers auto, or start one process"
        )
    chosen = choices.made.get("lr")
    if (
        tricks.lr_scaling is not None and chosen is not None and chosen.why != "given"
    ):  # lr scaling scales from its reference batch
        rule = "linear" if name == "sgd" else "sqrt"
        rate = scale_lr(float(chosen.value), tricks.lr_scaling.reference_batch, settings.batch_size or 1, rule)
        settings = replace(settings, lr=float(f"{rate:.3g}"))
    if settings.lr is None:
        settings = replace(settings, lr=optimizers.default_lr(name, peak=True))  # refuses an optimizer without a default
    return settings, tricks, reasons


def pixel_scale(model: str | None, weights: str | None) -> str:
    """How images are normalised: "imagenet" for models trained on ImageNet, else "data"."""
    known = model == efficientnet_hub.NAME or (weights or "").startswith(tuple(HUBS))
    return "imagenet" if known else "data"


def measure_speed(machine: Machine, device: str | None) -> Machine:
    """The machine with its current training speed, measured in about half a second."""
    from heptane.base.lazy import torch
    from heptane.pretrained.models import resnet

    where = device or default_device()
    with torch.random.fork_rng(devices=[]):
        model, images = resnet(10, 3).to(where), torch.zeros(32, 3, 40, 40, device=where)
        times = []
        for _ in range(4):
            start = time.perf_counter()
            model(images).sum().backward()
            if where != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    flops = PIXEL_FLOPS["resnet"] * 40 * 40 * 32 * 3
    return replace(machine, gflops=flops / sorted(times)[1] / 1e9)


def _weights(wanted: Choice) -> str | None:
    """The pretrained weights named by the user."""
    found = (wanted.own or {}).get("transfer", {}).get("weights")
    return None if found is None else str(found)


def _names_frozen_layers(wanted: Choice) -> bool:
    """Whether the user says what is frozen without giving a mode, which a chosen mode could contradict."""
    own = (wanted.own or {}).get("transfer", {})
    return any(own.get(name) for name in ("freeze", "unfreeze_every_epochs", "lora_rank"))


def _can_cache_features(settings: Settings, wanted: Choice) -> bool:
    """Whether frozen features can be cached: inputs never change, and the layers stay frozen."""
    own = (wanted.own or {}).get("transfer", {})
    frozen = "weights" not in own or own.get("mode") == "head" or bool(own.get("freeze"))
    moves = own.get("mode") not in (None, "head") or own.get("lora_rank") or own.get("cache") == "off"
    mixed = "mixup" in ((wanted.own or {}) if wanted.base == "recommended" else (*wanted.base, *(wanted.own or {})))
    changed = settings.augment not in (None, "none") or settings.progressive_size is not None or mixed
    return frozen and not moves and not changed


def _start(settings: Settings, wanted: Choice, *, race: bool, find: Callable[[], Any]) -> Any:
    """The pretrained weights, as ``find`` finds them, to start from by default, or why there are none."""
    if "transfer" in wanted.off or settings.loss not in (None, "cross_entropy", "binary_cross_entropy"):
        return "transfer is turned off"
    if wanted.base != "recommended" and "transfer" not in (*wanted.base, *(wanted.own or {})):
        return "transfer is not among the requested tricks"
    if race:
        return RACE
    how = cached.HOW if find is cached.find_pretrained else cached.HOW_TEXT
    return find() or f"no pretrained weights installed; {how}"
