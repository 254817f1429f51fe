"""Model + data + tricks -> what the loop needs, in the one order that is right, straight down the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from heptane._lazy import torch
from heptane.clock import Clock
from heptane.criterion import Criterion, CrossEntropy, Elementwise, Loss, Own, choose_criterion
from heptane.data.augment import Augment
from heptane.data.batches import Batch, Place, Source, Tensors, as_source, each, first_tensor
from heptane.errors import InputError, check_range
from heptane.metrics import TrainMeter
from heptane.probe import choose_precision, to_channels_last, unused_parameters
from heptane.schedule import Rates, base_rates, check_momentum, constant, multiply
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import DataParallel, Worker, check_replicas, this_worker
from heptane.tricks.label_smoothing import find_class_dim
from heptane.tricks.mixed_precision import Precision
from heptane.tricks.mixup import Mixer
from heptane.tricks.transfer import freeze, layer_groups, train_mode

OptimizerFactory = Callable[[Any], Any]


class Unmixed:
    """Fills the slot ``mix`` when mixup is off: batches as they are."""

    def take(self, batch: Batch, part: slice, step: int) -> tuple[Any, Any]:
        return batch.take(part)

    def targets(self, batch: Batch, step: int) -> Any:
        return batch.targets()


@dataclass(frozen=True)
class Phase:
    """A stretch of steps with the same parameters trainable; ``frozen`` counts groups, None leaves the user's choice."""

    start: int
    stop: int
    frozen: int | None = None


@dataclass
class Run:
    """Everything the loop works on: the slots, filled."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    base_rates: list[float]
    source: Source
    place: Place
    rates: Rates
    mix: Mixer | Unmixed
    criterion: Criterion
    precision: Precision
    phases: list[Phase]
    clock: Clock
    seed: int
    worker: Worker
    accumulate: int = 1
    clip_norm: float | None = None
    compile: bool = False
    find_unused: bool = False
    data_parallel: DataParallel = field(default_factory=DataParallel)
    notes: list[str] = field(default_factory=list)
    why: dict[str, str] = field(default_factory=dict)
    skipped: int = 0

    def __post_init__(self) -> None:
        self.meter = TrainMeter(self.criterion)

    @property
    def total_steps(self) -> int:
        """Planned optimizer steps."""
        return self.phases[-1].stop

    def enter(self, phase: Phase) -> torch.nn.Module:
        """Freeze what this phase freezes, set the modes, and wrap: the module that the loop calls."""
        if phase.frozen is None:
            self.model.train()
        else:
            freeze(self.model, phase.frozen)
            train_mode(self.model)
        check_replicas(self.model)
        wrapped = self.data_parallel.wrap(self.model, find_unused=self.find_unused)
        return torch.compile(wrapped) if self.compile else wrapped  # type: ignore[return-value]


def assemble(
    model: torch.nn.Module,
    train: Any,
    *,
    optimizer: OptimizerFactory,
    epochs: float,
    batch_size: int | None = None,
    loss: str | Loss | None = None,
    tricks: Tricks | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    augment: Augment | None = None,
    compile: bool = False,
    device: str | None = None,
    seed: int = 0,
    clock: Clock | None = None,
) -> Run:
    """Fill the loop's slots. The arguments are those of :func:`heptane.fit`; the order below is the wrapping order.

    Raises:
        InputError: input that is wrong, or tricks that exclude each other, before anything is trained.
    """
    tricks, clock = tricks or Tricks(), clock or Clock()
    clock.resume()
    _check(model, optimizer, epochs, accumulate, clip_norm, seed)
    worker, notes, why = this_worker(), [], {}

    # data
    source = as_source(train, batch_size, seed, accumulate)
    total_steps = max(1, round(epochs * source.steps_per_epoch))
    inputs, targets = source.sample(min(source.batch_size, source.num_samples))
    _check_inputs(source, inputs)

    # model: weights, head, frozen groups; then the device
    num_classes = _num_classes(source)
    if tricks.transfer:
        notes += tricks.transfer.prepare(model, num_classes)
    place = Place(torch.device(device or default_device()), seed, augment)
    model.to(place.device)
    inputs, targets = place.move((inputs, targets))

    # criterion: the one owner of targets
    few = each(lambda t: t[:2], (inputs, targets))
    output = try_output(model, few[0])
    criterion, reason = choose_criterion(loss, output, few[1], tricks.label_smoothing)
    notes.append(reason)
    check_targets(criterion, output, source.targets if isinstance(source, Tensors) else targets)
    if tricks.mixup and isinstance(criterion, Own) and tricks.mixup.per_sample and not _floating(targets):
        raise InputError("Mixup.per_sample=True with a loss of your own and integer targets: its mean cannot be weighted")

    # mixed precision: measured, then the memory format, before any wrap
    precision = Precision()
    if tricks.mixed_precision:
        dtype, place.channels_last, why["mixed_precision"] = _agree(
            choose_precision(tricks.mixed_precision, model, criterion, inputs, targets)
        )
        precision = tricks.mixed_precision.build(dtype, place.device.type)
        if place.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            inputs = to_channels_last(inputs)

    # data parallel: converted here, wrapped where a phase begins
    data_parallel = tricks.data_parallel or DataParallel()
    model = data_parallel.convert(model)
    unused = unused_parameters(model, criterion, *few) if worker.size > 1 else []
    if unused:
        notes.append(f"no gradient reaches {', '.join(unused[:3])}: the workers look for unused parameters at each step")

    # optimizer: all groups up front; base rates scaled once
    built, phases = _optimizer(model, optimizer, tricks, total_steps, source.steps_per_epoch)
    if tricks.lr_scaling:
        why["lr_scaling"] = tricks.lr_scaling.apply(built, source.batch_size)

    # schedules: warm-up times cycle
    rates = _rates(tricks, built, total_steps, source)
    mix: Mixer | Unmixed = Unmixed()
    if tricks.mixup:
        mix = tricks.mixup.fill(model, seed, total_steps, source.steps_per_epoch)
    clock.pause()
    return Run(
        model=model,
        optimizer=built,
        base_rates=base_rates(built),
        source=source,
        place=place,
        rates=rates,
        mix=mix,
        criterion=criterion,
        precision=precision,
        phases=phases,
        clock=clock,
        seed=seed,
        worker=worker,
        accumulate=accumulate,
        clip_norm=clip_norm,
        compile=compile,
        find_unused=bool(unused),
        data_parallel=data_parallel,
        notes=notes,
        why=why,
    )


def default_device() -> str:
    """Where training runs when nobody says: this worker's GPU, or the CPU."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def try_output(model: torch.nn.Module, inputs: Any) -> Any:
    """The model's output on a few inputs, leaving no mark: eval mode, no gradients, modes and random state put back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng():
            return model(inputs)
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_targets(criterion: Criterion, output: Any, targets: Any) -> None:
    """Refuse targets that the model's outputs cannot be compared with: labels out of range, other shapes."""
    if isinstance(criterion, Elementwise) and isinstance(targets, torch.Tensor):
        if output.shape[1:].numel() != targets.shape[1:].numel():
            raise InputError(
                f"outputs of shape {tuple(output.shape[1:])} and targets of shape {tuple(targets.shape[1:])} per sample: "
                f"{criterion.name} compares element by element, so give the model as many outputs as there are targets"
            )
        return
    if not isinstance(criterion, CrossEntropy) or not isinstance(targets, torch.Tensor):
        return
    if not isinstance(output, torch.Tensor) or output.ndim < 2:
        raise InputError(f"cross_entropy needs outputs (N, C), one score per class; the model gave {_shape(output)}")
    if targets.is_floating_point():
        if targets.shape[1:] != output.shape[1:]:
            raise InputError(
                f"soft targets of shape {tuple(targets.shape[1:])} and outputs of shape {tuple(output.shape[1:])} per "
                "sample: cross_entropy needs one probability per class"
            )
        return
    if targets.dtype != torch.long:
        raise InputError(f"targets of type {targets.dtype}: cross_entropy needs int64 classes; use targets.long()")
    dim = find_class_dim(output.shape, (len(output), *targets.shape[1:]), False, criterion.class_dim)
    num_classes = output.shape[dim]
    bad = ((targets < 0) | (targets >= num_classes)) & (targets != criterion.ignore_index)
    if bool(bad.any()):
        at = tuple(bad.nonzero()[0].tolist())
        where = at[0] if len(at) == 1 else at
        raise InputError(
            f"label {int(targets[at])} of sample {where} is out of range: the model has {num_classes} outputs, "
            f"so labels are 0 to {num_classes - 1}"
        )


def _check(model: Any, optimizer: Any, epochs: float, accumulate: int, clip_norm: float | None, seed: int) -> None:
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"model of type {type(model).__name__}: expected a torch.nn.Module")
    if isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer):
        kind = type(optimizer).__name__
        raise InputError(
            f"optimizer={kind}: expected a factory, such as lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9)"
        )
    check_range("epochs", epochs, 0, low_open=True)
    check_range("accumulate", accumulate, 1, whole=True)
    check_range("seed", seed, 0, 2**31, whole=True)
    if clip_norm is not None:
        check_range("clip_norm", clip_norm, 0, low_open=True)


def _check_inputs(source: Source, sample: Any) -> None:
    inputs = source.inputs if isinstance(source, Tensors) else sample

    def check(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            where = (~torch.isfinite(tensor.reshape(len(tensor), -1))).any(1).nonzero()[0].item()
            raise InputError(f"the training inputs hold NaN or infinity, first in sample {where}: clean the data first")
        return tensor

    each(check, inputs)


def _num_classes(source: Source) -> int | None:
    targets = source.targets if isinstance(source, Tensors) else None
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or targets.ndim != 1:
        return None
    return int(targets.max()) + 1


def _optimizer(
    model: torch.nn.Module, factory: OptimizerFactory, tricks: Tricks, total_steps: int, steps_per_epoch: int
) -> tuple[Any, list[Phase]]:
    if tricks.transfer is None:
        built, phases = factory(model.parameters()), [Phase(0, total_steps)]
    else:
        groups = tricks.transfer.param_groups(model, 1.0)
        built = factory([{"params": group["params"], "name": group["name"]} for group in groups])
        for group, share in zip(built.param_groups, groups, strict=True):
            group["lr"] *= share["lr"]
        starts = tricks.transfer.phases(total_steps, steps_per_epoch, len(layer_groups(model)))
        stops = [start for start, _ in starts[1:]] + [total_steps]
        phases = [Phase(start, stop, frozen) for (start, frozen), stop in zip(starts, stops, strict=True)]
    if not isinstance(built, torch.optim.Optimizer):
        raise InputError(f"the optimizer factory returned {type(built).__name__}: expected a torch.optim.Optimizer")
    if isinstance(built, torch.optim.LBFGS):
        raise InputError("optimizer LBFGS evaluates the loss many times per step; use one that takes one gradient per step")
    return built, phases


def _rates(tricks: Tricks, optimizer: Any, total_steps: int, source: Source) -> Rates:
    schedules, momentum = [], None
    if tricks.lr_scaling:
        warms_up = tricks.cyclical is not None and tricks.cyclical.warms_up
        ramp = tricks.lr_scaling.warmup_schedule(
            optimizer,
            source.batch_size,
            total_steps=total_steps,
            steps_per_epoch=source.steps_per_epoch,
            cycle_warms_up=warms_up,
        )
        schedules.append(ramp)
    if tricks.cyclical:
        cycle = tricks.cyclical.rates(total_steps, source.steps_per_epoch)
        schedules.append(cycle.learning_rate)
        momentum = cycle.momentum
        if momentum:
            check_momentum(optimizer)
    return Rates(multiply(*schedules) if schedules else constant(), momentum)


def _agree(choice: Any) -> Any:
    """Rank 0's choice on every worker: a measurement may come out differently on each."""
    if this_worker().size == 1:
        return choice
    box = [choice]
    torch.distributed.broadcast_object_list(box, 0)
    return box[0]


def _floating(targets: Any) -> bool:
    return first_tensor(targets).is_floating_point()


def _shape(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__


def named_settings(tricks: Tricks) -> Iterator[tuple[str, dict[str, Any]]]:
    """The seven, in order, each with its settings; an empty dict where it is off."""
    for name in Tricks.__dataclass_fields__:
        trick = getattr(tricks, name)
        yield name, dict(vars(trick)) if trick is not None else {}
