"""Model + data + tricks -> what the loop needs, in the one order that is right, straight down the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from heptane.base.clock import Clock
from heptane.base.device import find_device
from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.progress import EVERY_SECONDS, working
from heptane.base.tree import copy_rows, first_tensor, in_memory, inputs_and_targets, select_rows
from heptane.core.checks import (
    check_batch_norm,
    check_finite,
    check_model,
    check_one_output,
    check_optimizer,
    check_resize,
    check_targets,
    check_trained,
    labels_of,
)
from heptane.core.criterion import choose_criterion, is_classification_loss, loss_input, loss_module, model_output
from heptane.core.cross_entropy import find_class_dim
from heptane.core.custom_losses import CustomLoss, ModelLoss, choose_loss_input, infer_loss_count
from heptane.core.losses import Criterion, CrossEntropy, Elementwise, can_smooth
from heptane.core.optimizers import build_optimizer, resolve_optimizer
from heptane.core.precision.choose import choose_precision
from heptane.core.precision.step import Precision, check_master_weights, disable_foreach
from heptane.core.run import NoMixup, OptimizerFactory, Phase, Plan, Run
from heptane.core.schedule import Rates, check_momentum, constant, scale_schedules
from heptane.core.splitting import TRIED, check_splittable
from heptane.core.untrained import check_buffers, check_untrained
from heptane.data.batches import BatchTransform, Source, TensorSource, dataset_tensors
from heptane.data.consistency import check_same_data
from heptane.data.loader import LoaderSource
from heptane.data.skipped_samples import SkippedSamples, labels_beyond
from heptane.data.sources import as_source
from heptane.data.spaced_samples import spaced_samples
from heptane.data.stream import StreamSource
from heptane.distributed.replicas import broadcast_model
from heptane.distributed.workers import Worker, any_rank
from heptane.model.forward import main_output
from heptane.model.memory_format import store_channels_last
from heptane.model.probe import min_train_samples, probe_output, probe_training, two_samples, written_parameters
from heptane.model.warm_up import warm_up
from heptane.pretrained.anatomy import Anatomy
from heptane.pretrained.freezing import freeze, layer_groups, restore_freezing, save_freezing
from heptane.session.checkpoints.settings import groups_of, settings_of
from heptane.session.same_settings import check_same_settings
from heptane.tricks import Tricks
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.transfer import Stages, Transfer

if TYPE_CHECKING:
    from heptane.distributed.layer_usage import LayerUsage

SAME = (  # of a plan, in all workers
    *("epochs", "steps", "batch_size", "accumulate", "clip_norm", "resize", "seed", "on_nan", "nan_limit", "skip_bad"),
    "average_decay",
)


@working("preparing the first step", after=EVERY_SECONDS)
def assemble(
    model: torch.nn.Module,
    train: Any,
    *,
    tricks: Tricks | None = None,
    clock: Clock | None = None,
    others: Sequence[Any] = (),
    asked: Tricks | None = None,
    **settings: Any,
) -> Run:
    """Fill the loop's slots; ``settings`` are a :class:`Plan`'s, ``others`` the data that is evaluated, whose labels count
    too where a head is made, ``asked`` the tricks asked for, where ``tricks`` follow the number of workers. The order below
    is the wrapping order.

    Raises:
        InputError: input that is wrong, or tricks that exclude each other, before anything is trained.
    """
    tricks, clock = Tricks() if tricks is None else tricks, clock or Clock()
    if not isinstance(tricks, Tricks):
        raise InputError(f"tricks={tricks!r}: expected a heptane.Tricks(...), or None for all off")
    optimizer, said = resolve_optimizer(
        settings.pop("optimizer", None), settings.pop("lr", None), peak=tricks.cyclical is not None
    )
    plan = Plan(optimizer=optimizer, **settings)
    check_model(model)
    device = find_device(plan.device or default_device())
    warm_up(str(device))
    clock.resume()
    notes: list[str] = [said] if said else []
    why: dict[str, str] = {}
    place = BatchTransform(device, plan.seed, plan.augment)
    data_parallel = tricks.data_parallel or DataParallel()
    worker = data_parallel.join(place.device.type) if tricks.data_parallel else Worker()
    source = as_source(train, plan.batch_size, plan.seed, plan.accumulate, plan.steps)
    bad = SkippedSamples(plan.skip_bad)
    if isinstance(source, LoaderSource):
        source.bad, source.worker = bad, worker
    check_same_settings({name: getattr(plan, name) for name in SAME} | dict(vars(tricks)), worker)
    check_same_data(source, [("evaluation", data) for data in others], worker)
    data_parallel.check_shares(source.num_samples, source.batch_size, plan.accumulate, worker)
    total_steps = plan.steps or max(1, round((plan.epochs or 0) * source.steps_per_epoch))
    if isinstance(source, StreamSource):
        notes.append(f"the data have no length: a tenth of the {total_steps} steps, {source.steps_per_epoch}, is an epoch")

    # model: on the device, where its order of use is seen; weights, head, frozen groups
    restore_freezing(model)  # an earlier run that was left in the middle
    model.to(place.device)
    broadcast_model(model, worker)
    loss = loss_module(plan.loss)
    if loss is not None:
        check_buffers(loss)
        loss.to(place.device)
        broadcast_model(loss, worker)
    if isinstance(source, TensorSource):
        source.keep_on(place)
    sample, said_of_types = _sample(source, place, model, plan.loss)
    notes += said_of_types
    if any(map(torch.nn.parameter.is_lazy, model.parameters())):  # the optimizer needs real ones, the same on all workers
        probe_output(model, *two_samples(sample, plan.loss))
        broadcast_model(model, worker)
    groups = tricks.transfer.anatomy(model, *two_samples(sample, plan.loss)) if tricks.transfer else None
    if tricks.transfer:
        if tricks.transfer.lora_rank and data_parallel.shards:
            raise InputError("Transfer.lora_rank with DataParallel.strategy='fsdp': adapters are small, so use 'ddp'")
        save_freezing(model)
        assert groups is not None
        transfer, loaded = _with_mode(tricks.transfer, model, groups, source, place, worker, why)
        tricks = replace(tricks, transfer=transfer)
        notes += loaded + transfer.load(model)
        notes += transfer.fit_head(model, _num_classes(source, plan.loss, others), plan.seed, groups)
        groups = transfer.anatomy(model, *two_samples(sample, plan.loss))  # again: a new head shares no weight
        notes += transfer.apply_freezing(model, groups, plan.seed)
    if plan.resize:
        check_resize(model, plan.resize, sample[0])
    # criterion: the one owner of targets
    criterion, reason = _criterion(plan, model, source, place, sample, tricks, bad)
    if isinstance(source, LoaderSource) and bad.labels and labels_beyond(sample[1], *bad.labels):
        sample, _ = _sample(source, place, model, plan.loss)  # without them, or an error that names them
    notes.append(reason)
    notes += _said_of_parts(model, criterion, train, source, place, sample, plan, worker)
    stages = Stages(tricks.transfer, groups)
    least = _least_samples(model, stages, two_samples(sample, plan.loss), total_steps, source.steps_per_epoch)
    written = _written(model, loss, criterion, stages, sample)
    if least > 1:
        least *= 1 if data_parallel.sync_batchnorm else worker.size
        check_batch_norm(least, source.batch_size)
        if said := source.drop_short_batch(least):
            notes.append(said)
            total_steps = plan.steps or max(1, round((plan.epochs or 0) * source.steps_per_epoch))
    if plan.resize:
        place.sizes = plan.resize.sizes(total_steps)
    # mixed precision: measured, then the memory format, before any wrap
    last_rows = source.num_samples % source.batch_size
    precision = _precision(tricks, model, criterion, sample, place, worker, why, notes, clock, total_steps, last_rows)
    precision.guard = plan.on_nan != "ignore"
    # data parallel: converted or sharded here, wrapped where a phase begins
    model = data_parallel.convert(model)
    use = _use(model, criterion, sample, plan, data_parallel, worker) if data_parallel.shards else None
    meta_copy = data_parallel.shard(model, use)
    if use is not None and use.varies:
        notes.append("the model may leave layers out, so the workers gather all of it at once: more memory than by layers")
    # optimizer: all groups up front; base rates scaled once
    of_loss = trainable(loss, model)
    steps = total_steps, source.steps_per_epoch
    optimizer, phases = _optimizer(model, plan.optimizer, tricks, *steps, groups, of_loss)
    notes += check_trained(optimizer, model, of_loss)
    apart = [*of_loss, *(data_parallel.in_one_piece(model) if meta_copy is not None else ())]
    if meta_copy is not None and apart:
        disable_foreach(optimizer)
    if of_loss:
        notes.append(f"{len(of_loss)} parameter(s) of the loss {type(loss).__name__} are trained and saved with the model's")
    groups_built = groups_of(optimizer)
    check_same_settings({"optimizer": type(optimizer).__name__, **groups_built}, worker)
    find_unused = (
        worker.size > 1
        and meta_copy is None
        and (
            data_parallel.find_unused
            or _looks_for_unused(model, criterion, sample, phases, notes, groups, plan, data_parallel, worker)
        )
    )
    if tricks.lr_scaling:
        why["lr_scaling"] = tricks.lr_scaling.apply(optimizer, source.batch_size)
    # schedules: warm-up times cycle
    rates = _rates(tricks, optimizer, total_steps, source)
    mixup = tricks.mixup
    mix = mixup.fill(model, plan.seed, total_steps, source.steps_per_epoch, sample[0]) if mixup else NoMixup()
    clock.pause()
    slots = (plan, model, optimizer, source, place, rates, mix, criterion, precision, phases)
    run = Run(
        *slots,
        clock,
        worker,
        data_parallel,
        find_unused,
        notes,
        why,
        bad,
        stages,
        meta_copy,
        sample[0],
        least,
        loss,
        of_loss,
        apart,
        written,
    )
    run.settings = settings_of(run, replace(asked or tricks, transfer=tricks.transfer), groups_built)
    return run


def _least_samples(model: torch.nn.Module, stages: Stages, few: tuple[Any, Any], total_steps: int, per_epoch: int) -> int:
    """How many samples a batch needs, in the phase in which most of the model trains: frozen BatchNorm takes one."""
    groups = stages.groups
    starts = stages.starts(total_steps, per_epoch, len(layer_groups(model, groups))) if groups else []
    if starts:
        freeze(model, starts[-1][1], groups)
    least = min_train_samples(model, *few, stages.modes)
    if starts:
        freeze(model, starts[0][1], groups)
    return least


def _written(
    model: torch.nn.Module, loss: torch.nn.Module | None, criterion: Criterion, stages: Stages, sample: tuple[Any, Any]
) -> list[str]:
    """Names, in the model and its loss together, of the parameters that a step's forward pass writes to."""
    inputs, targets = copy_rows(sample, slice(2))

    def step() -> None:
        stages.modes(model)
        criterion.mean(model_output(criterion, model, inputs, targets), targets)

    return written_parameters(model if loss is None else torch.nn.ModuleList([model, loss]), step)


def _with_mode(
    transfer: Transfer,
    model: torch.nn.Module,
    groups: Anatomy,
    source: Source,
    place: BatchTransform,
    worker: Worker,
    why: dict[str, str],
) -> tuple[Transfer, list[str]]:
    """``transfer`` with what its mode "auto" comes to, measured on the weights that it starts from; and what it said."""
    if transfer.mode != "auto":
        return transfer, []
    from heptane.pretrained.mode import choose_mode

    said = transfer.load(model)
    with working("measuring how much of the model to train"):
        choice = [choose_mode(model, groups, source, place)]
    if worker.size > 1:
        torch.distributed.broadcast_object_list(choice, 0)
    mode, why["transfer"] = choice[0]
    return replace(transfer, mode=mode, weights=None), [*said, f"mode {why['transfer']}"]


def trainable(loss: torch.nn.Module | None, model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters of a loss that train, and are not the model's."""
    own = {id(parameter) for parameter in model.parameters()}
    return [p for p in (loss.parameters() if loss is not None else ()) if p.requires_grad and id(p) not in own]


def default_device() -> str:
    """Where training runs when nobody says: this worker's GPU, or the CPU."""
    return f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"


def _num_classes(source: Source, loss: Any, others: Sequence[Any]) -> int | None:
    """How many outputs a head needs, where a loss over classes and the labels say it."""
    if not isinstance(source, TensorSource) or not is_classification_loss(loss):
        return None
    labels = [source.targets, *(inputs_and_targets(data)[1] for data in map(dataset_tensors, others) if in_memory(data))]
    if not all(isinstance(part, torch.Tensor) and not part.is_floating_point() and part.ndim == 1 for part in labels):
        return None
    return max(int(part.max()) + 1 for part in labels if len(part))


def _sample(source: Source, place: BatchTransform, model: torch.nn.Module, loss: Any) -> tuple[tuple[Any, Any], list[str]]:
    """A batch on the device, of the types that the model takes; and what was said of them."""
    sample = source.sample(min(source.batch_size, source.num_samples))
    check_finite(source, sample)
    inputs, targets = place.move(sample)
    whole = source.inputs if isinstance(source, TensorSource) else None
    said = place.cast.learn(model, inputs, targets, labels=loss == "model", whole=whole)
    return (place.cast.inputs(inputs), place.cast.targets(targets)), said


def _criterion(
    plan: Plan,
    model: torch.nn.Module,
    source: Source,
    place: BatchTransform,
    sample: Any,
    tricks: Tricks,
    bad: SkippedSamples,
) -> tuple[Criterion, str]:
    output = probe_output(model, *two_samples(sample, plan.loss))
    targets = place.cast.targets(source.targets) if isinstance(source, TensorSource) else sample[1]
    smoothing, left_out = tricks.label_smoothing, ""
    if smoothing and smoothing.optional and not can_smooth(choose_criterion(plan.loss, output, targets, None)[0]):
        smoothing, left_out = None, "; label smoothing is left out: there are no classes to smooth"
    criterion, reason = choose_criterion(plan.loss, output, targets, smoothing.eps if smoothing else None)
    reason += left_out
    criterion = infer_loss_count(criterion, output, select_rows(sample[1], slice(2)))
    if isinstance(criterion, CustomLoss) and not criterion.first:
        training = probe_training(model, sample[0])
        if main_output(training)[1] and type(training) is not type(output):
            criterion = choose_loss_input(criterion, training, output, targets)
            reason += f"; the output is {main_output(training)[1]}" if criterion.first else ""
    if not isinstance(criterion, (CustomLoss, ModelLoss)) and len(first_tensor(sample[0])) > 1:  # BatchNorm needs two
        check_one_output(output, lambda: probe_training(model, sample[0]))
    output = loss_input(criterion, output)
    of_loss = loss_module(plan.loss)
    parameters = [*model.parameters(), *(of_loss.parameters() if of_loss else ())]
    check_untrained(criterion, output, select_rows(sample[1], slice(2)), parameters)
    if not isinstance(source, LoaderSource):
        check_targets(criterion, output, targets)
    if isinstance(criterion, CrossEntropy) and criterion.class_dim is None and output.ndim > 2:
        shown = select_rows(sample[1], slice(2))  # once: a later batch may be as long as there are classes
        dim = find_class_dim(output.shape, shown.shape, shown.is_floating_point())
        criterion = replace(criterion, class_dim=dim)
    bad.labels = labels_of(criterion, output, targets)  # of loaders, looked at batch by batch
    bad.binary = isinstance(criterion, Elementwise) and criterion.multi_label
    bad.distributions = plan.loss is None and isinstance(criterion, CrossEntropy) and targets.is_floating_point()
    if isinstance(criterion, CrossEntropy) and isinstance(source, TensorSource) and targets.ndim == 1:
        ignored = criterion.weight is not None or criterion.log_probs or bool((targets == criterion.ignore_index).any())
        criterion = replace(criterion, all_count=not ignored)
    per_sample = tricks.mixup is not None and tricks.mixup.per_sample
    if per_sample and isinstance(criterion, CustomLoss) and not first_tensor(targets).is_floating_point():
        raise InputError("Mixup.per_sample=True with a loss of your own and integer targets: its mean cannot be weighted")
    if tricks.mixup is not None and isinstance(criterion, ModelLoss):
        raise InputError(
            "mixup with loss='model': the model's own loss takes no blended targets; leave loss out, and it is computed "
            "from the model's logits, or turn mixup off"
        )
    return criterion, reason


def _said_of_parts(
    model: torch.nn.Module,
    criterion: Criterion,
    train: Any,
    source: Source,
    place: BatchTransform,
    sample: Any,
    plan: Plan,
    worker: Worker,
) -> list[str]:
    """What is to be said where a batch is split and its loss cannot be put together exactly; refused where that is known."""
    if worker.size * plan.accumulate == 1 or not isinstance(criterion, (CustomLoss, ModelLoss)):
        return []
    targets, found = source.targets if isinstance(source, TensorSource) else sample[1], spaced_samples(train, TRIED)
    if found is not None:
        moved = place.move(found)
        sample = place.cast.inputs(moved[0]), place.cast.targets(moved[1])
    return check_splittable(criterion, model, copy_rows(sample, slice(TRIED)), targets, worker.size * plan.accumulate)


def _precision(
    tricks: Tricks,
    model: torch.nn.Module,
    criterion: Criterion,
    sample: Any,
    place: BatchTransform,
    worker: Worker,
    why: dict[str, str],
    notes: list[str],
    clock: Clock,
    planned_steps: int,
    last_rows: int,
) -> Precision:
    trick = tricks.mixed_precision
    if trick is None:
        return Precision()
    check_master_weights(model)
    clock.pause()  # a fact of this machine, which is found once
    with working("measuring a training step in each precision"):
        choice = [
            choose_precision(trick, model, criterion, *sample, planned_steps=planned_steps, last_rows=last_rows, notes=notes)
        ]
    clock.resume()
    if worker.size > 1:
        torch.distributed.broadcast_object_list(choice, 0)  # a measurement may come out differently on each worker
    dtype, place.channels_last, why["mixed_precision"] = choice[0]
    if place.channels_last and not (tricks.data_parallel and tricks.data_parallel.shards):  # shards are contiguous
        store_channels_last(model)
    return trick.build(dtype, place.device.type)


def _optimizer(
    model: torch.nn.Module,
    factory: OptimizerFactory,
    tricks: Tricks,
    total_steps: int,
    steps_per_epoch: int,
    anatomy: Anatomy | None,
    of_loss: list[torch.nn.Parameter],
) -> tuple[torch.optim.Optimizer, list[Phase]]:
    """The optimizer of the model's parameters and, after them, those ``of_loss``, with the phases of the run."""
    transfer = tricks.transfer
    if transfer is None:
        built = build_optimizer(factory, list(model.parameters()))
        check_optimizer(built, None)
        held = {id(parameter) for group in built.param_groups for parameter in group["params"]}
        if not all(id(parameter) in held for parameter in of_loss):  # unless the factory has put them in by itself
            built = build_optimizer(factory, [*model.parameters(), *of_loss])
        return built, [Phase(0, total_steps)]
    groups = transfer.param_groups(model, 1.0, anatomy)
    groups += [{"params": of_loss, "lr": 1.0, "name": "loss"}] if of_loss else []
    built = build_optimizer(factory, [{"params": group["params"], "name": group["name"]} for group in groups])
    check_optimizer(built, len(groups))
    for group, share in zip(built.param_groups, groups, strict=True):
        group["lr"] = group["lr"] * share["lr"]
    if not transfer.first_frozen:
        return built, [Phase(0, total_steps)]
    starts = transfer.phases(total_steps, steps_per_epoch, len(groups) - bool(of_loss))
    stops = [start for start, _ in starts[1:]] + [total_steps]
    return built, [Phase(start, stop, frozen) for (start, frozen), stop in zip(starts, stops, strict=True)]


def _looks_for_unused(
    model: torch.nn.Module,
    criterion: Criterion,
    sample: Any,
    phases: list[Phase],
    notes: list[str],
    groups: Anatomy | None,
    plan: Plan,
    data_parallel: DataParallel,
    worker: Worker,
) -> bool:
    """Whether a step leaves parameters without a gradient that train in some phase, or may do so."""
    if phases[-1].frozen is not None:
        freeze(model, phases[-1].frozen, groups)
    use = _use(model, criterion, sample, plan, data_parallel, worker)
    if phases[0].frozen is not None:
        freeze(model, phases[0].frozen, groups)
    if use.unused or use.decides:
        why = f"no gradient reaches {', '.join(use.unused[:3])}" if use.unused else "forward goes by values or by chance"
        notes.append(f"{why}: the workers look for unused parameters at each step")
    return bool(use.unused) or use.decides


def _use(
    model: torch.nn.Module, criterion: Criterion, sample: Any, plan: Plan, data_parallel: DataParallel, worker: Worker
) -> LayerUsage:
    """How the model uses its layers; the same on all workers."""
    from heptane.distributed.layer_usage import observe_usage
    from heptane.distributed.sharding import units

    shards = data_parallel.shards
    use = observe_usage(
        model,
        lambda inputs, targets: model_output(criterion, model, inputs, targets),
        criterion.mean,
        sample,
        units(model) if shards else [],
        plan.seed,
    )
    found = [use.decides, use.varies or (shards and data_parallel.find_unused), use.reentrant]
    use.decides, use.varies, use.reentrant = any_rank(found, worker)
    return use


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
    return Rates(scale_schedules(*schedules) if schedules else constant(), momentum)
