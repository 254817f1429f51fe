"""Model + data + tricks -> a ``Run``: the only page that knows all seven tricks.

:func:`assemble` fills the loop's slots from top to bottom; each step below is one method of ``_Assembly``, in the order in
which it is called. The order is the wrapping order: weights, frozen layers, loss, precision, shards, optimizer, schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from heptane.base.clock import Clock
from heptane.base.device import default_device, find_device
from heptane.base.errors import InputError
from heptane.base.events import Events
from heptane.base.lazy import torch
from heptane.base.progress import EVERY_SECONDS, working
from heptane.core.checks import check_batch_norm, check_finite, check_model, check_resize, check_trained
from heptane.core.choose_criterion import criterion_for, num_classes_of, parts_notes
from heptane.core.class_balance import balance, weight_classes
from heptane.core.criterion import loss_module
from heptane.core.fit_options import Plan
from heptane.core.optimizers import model_optimizer, resolve_optimizer
from heptane.core.precision.choose import choose_precision
from heptane.core.precision.step import Precision, disable_foreach
from heptane.core.run import BatchMixer, Run
from heptane.core.schedule import Rates, check_momentum, constant, scale_schedules
from heptane.core.step_trial import least_batch, step_layer_usage, written_by_forward
from heptane.core.unoptimized_parameters import check_buffers
from heptane.data.augment import as_augment
from heptane.data.batches import BatchTransform, TensorSource
from heptane.data.consistency import check_same_data
from heptane.data.loaders.loader_source import LoaderSource
from heptane.data.loaders.skipped_samples import SkippedSamples, labels_beyond
from heptane.data.loaders.stream_source import StreamSource
from heptane.data.sources import as_source
from heptane.distributed.replicas import broadcast_model
from heptane.distributed.workers import Worker, all_gather
from heptane.model.memory_format import store_channels_last
from heptane.model.probe import probe_output, two_samples
from heptane.model.warm_up import warm_up
from heptane.pretrained.anatomy import Anatomy
from heptane.pretrained.freezing import restore_freezing, save_freezing
from heptane.session.checkpoints.settings import groups_of, settings_of
from heptane.session.same_settings import check_same_settings
from heptane.tricks import Tricks, check_tricks
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.transfer import Stages


@working("preparing the first step", after=EVERY_SECONDS)
def assemble(
    model: torch.nn.Module,
    train: Any,
    plan: Plan,
    tricks: Tricks | None = None,
    *,
    clock: Clock | None = None,
    others: Sequence[Any] = (),
    asked: Tricks | None = None,
) -> Run:
    """Fill the loop's slots.

    Args:
        model: any module.
        train: training data, as :func:`heptane.fit` takes them.
        plan: how to train.
        tricks: None for none.
        clock: counts the time from here on.
        others: evaluation data, whose labels count too where a head is made.
        asked: the tricks as the user asked for them, where ``tricks`` follow another number of workers.

    Raises:
        InputError: wrong input, or tricks that exclude each other, before anything is trained.
    """
    check_model(model)
    made = _Assembly(model, plan, check_tricks(tricks), clock or Clock())
    made.open_data(train, others)
    made.place_model()
    made.transfer(others)
    made.choose_criterion(train)
    made.look_at_a_step()
    made.choose_precision()
    made.shard()
    made.build_optimizer()
    made.look_for_unused_parameters()
    return made.run(asked)


class _Assembly:
    """What is known so far; each method adds to it."""

    def __init__(self, model: torch.nn.Module, plan: Plan, tricks: Tricks, clock: Clock) -> None:
        self.model, self.plan, self.tricks, self.clock = model, plan, tricks, clock
        self.extras = plan.extras
        self.events, self.why = Events(), dict[str, str]()
        self.factory, said = resolve_optimizer(plan.optimizer, plan.lr, peak=tricks.cyclical is not None)
        self.events.note(*filter(None, [said]))
        device = find_device(plan.device or default_device())
        warm_up(str(device))
        clock.resume()
        self.place = BatchTransform(device, plan.seed, as_augment(self.extras.augment))
        self.parallel = tricks.data_parallel or DataParallel()
        self.worker = self.parallel.join(device.type) if tricks.data_parallel else Worker()
        self.groups: Anatomy | None = None
        self.loss = loss_module(plan.loss)

    def open_data(self, train: Any, others: Sequence[Any]) -> None:
        """The source of batches, alike on all workers."""
        plan = self.plan
        self.source = as_source(train, plan.batch_size, plan.seed, plan.accumulate, plan.steps)
        self.skipped = SkippedSamples(self.extras.skip_bad)
        if isinstance(self.source, (LoaderSource, TensorSource)):
            self.source.worker = self.worker
        if isinstance(self.source, LoaderSource):
            self.source.skipped = self.skipped
        balance(self.source, self.extras.sampling, self.extras.class_weights)
        if isinstance(self.source, TensorSource):
            self.place.fit_augment(self.source.inputs)
            self.source.report_to(self.events.warn)
        check_same_settings(plan.facts() | dict(vars(self.tricks)), self.worker)
        check_same_data(self.source, [("evaluation", data) for data in others], self.worker)
        self.parallel.check_shares(self.source.num_samples, self.source.batch_size, plan.accumulate, self.worker)
        self._count_steps()
        if isinstance(self.source, StreamSource):
            per_epoch = self.source.steps_per_epoch
            self.events.note(
                f"the data have no length: a tenth of the {self.total_steps} steps, {per_epoch}, counts as an epoch"
            )

    def _count_steps(self) -> None:
        epochs = self.plan.epochs or 0
        self.total_steps = self.plan.steps or max(1, round(epochs * self.source.steps_per_epoch))

    def place_model(self) -> None:
        """The model and its loss on the device, alike on all workers; a batch to try them on."""
        restore_freezing(self.model)  # an earlier run that was left in the middle
        self.model.to(self.place.device)
        broadcast_model(self.model, self.worker)
        if self.loss is not None:
            check_buffers(self.loss)
            self.loss.to(self.place.device)
            broadcast_model(self.loss, self.worker)
        if isinstance(self.source, TensorSource):
            self.source.keep_on(self.place)
        self.events.note(*self._take_sample())
        if any(map(torch.nn.parameter.is_lazy, self.model.parameters())):  # the optimizer needs them, alike on all workers
            probe_output(self.model, *self._two())
            broadcast_model(self.model, self.worker)

    def _take_sample(self) -> list[str]:
        """A batch on the device, of the types that the model takes; notes on conversions."""
        sample = self.source.sample(min(self.source.batch_size, self.source.num_samples))
        check_finite(self.source, sample)
        inputs, targets = self.place.move(sample)
        whole = self.source.inputs if isinstance(self.source, TensorSource) else None
        notes = self.place.cast.learn(self.model, inputs, targets, labels=self.plan.loss == "model", whole=whole)
        self.sample = self.place.cast.inputs(inputs), self.place.cast.targets(targets)
        return notes

    def _two(self) -> tuple[Any, Any]:
        return two_samples(self.sample, self.plan.loss)

    def transfer(self, others: Sequence[Any]) -> None:
        """Transfer: the weights, the head, and what is frozen at first."""
        transfer = self.tricks.transfer
        if transfer is not None:
            self.groups = transfer.anatomy(self.model, *self._two())
            if transfer.lora_rank and self.parallel.shards:
                raise InputError("Transfer.lora_rank with DataParallel.strategy='fsdp': adapters are small, so use 'ddp'")
            save_freezing(self.model)
            transfer, reason, notes = transfer.with_mode(self.model, self.groups, self.source, self.place, self.worker)
            self.why |= {"transfer": reason} if reason else {}
            self.tricks = replace(self.tricks, transfer=transfer)
            classes = num_classes_of(self.source, self.plan.loss, others)
            notes += transfer.load(self.model) + transfer.fit_head(self.model, classes, self.plan.seed, self.groups)
            self.groups = transfer.anatomy(self.model, *self._two())  # again: a new head shares no weight
            self.events.note(*notes, *transfer.apply_freezing(self.model, self.groups, self.plan.seed))
        self.stages = Stages(transfer, self.groups)
        if self.extras.resize:
            check_resize(self.model, self.extras.resize, self.sample[0])

    def choose_criterion(self, train: Any) -> None:
        """Loss and label smoothing: the criterion, the one owner of targets."""
        tricks, plan = self.tricks, self.plan
        self.criterion, reason = criterion_for(
            plan.loss, self.model, self.source, self.place, self.sample, self.skipped, tricks.label_smoothing
        )
        if self.extras.class_weights is not None:
            classes = self.skipped.labels[0] if self.skipped.labels else None
            self.criterion, note = weight_classes(self.criterion, self.extras.class_weights, self.source, classes)
            self.events.note(note)
        if tricks.mixup:
            tricks.mixup.check_criterion(self.criterion, self.sample[1])
        limits = self.skipped.labels
        if isinstance(self.source, LoaderSource) and limits and labels_beyond(self.sample[1], *limits):
            self._take_sample()  # without those samples, or an error that names them
        self.events.note(reason)
        if self.worker.size * plan.accumulate > 1:
            parts = self.worker.size * plan.accumulate
            self.events.note(*parts_notes(self.criterion, self.model, train, self.source, self.place, self.sample, parts))

    def look_at_a_step(self) -> None:
        """What a step needs of a batch, and which parameters the forward pass writes to."""
        per_epoch = self.source.steps_per_epoch
        self.least = least_batch(self.model, self.stages, self._two(), self.total_steps, per_epoch)
        self.written = written_by_forward(self.model, self.loss, self.criterion, self.stages, self.sample)
        if self.least > 1:
            self.least *= 1 if self.parallel.sync_batchnorm else self.worker.size
            check_batch_norm(self.least, self.source.batch_size)
            if note := self.source.drop_short_batch(self.least):
                self.events.note(note)
                self._count_steps()
        if self.extras.resize:
            self.place.sizes = self.extras.resize.sizes(self.total_steps)

    def choose_precision(self) -> None:
        """Mixed precision: measured on the bare model, with the memory format."""
        self.precision = Precision()
        trick = self.tricks.mixed_precision
        if trick is not None:
            self.clock.pause()  # a fact of this machine, which is found once
            last_rows = self.source.num_samples % self.source.batch_size
            what = trick, self.model, self.criterion, self.sample
            choice = choose_precision(*what, planned_steps=self.total_steps, last_rows=last_rows)
            choice = all_gather(choice, self.worker)[0]  # a measurement may come out differently on each worker
            self.clock.resume()
            self.events.note(*choice.notes)
            self.why["mixed_precision"] = choice.why
            self.place.channels_last = choice.channels_last
            if choice.channels_last and not (self.tricks.data_parallel and self.parallel.shards):  # shards are contiguous
                store_channels_last(self.model)
            self.precision = trick.build(choice.dtype, self.place.device.type)
        self.precision.guard = self.extras.on_nan != "ignore"

    def shard(self) -> None:
        """Data parallel: BatchNorm over all workers, and shards; the loop wraps the model where a phase begins."""
        self.model, use = self.parallel.convert(self.model), None
        if self.parallel.shards:
            use = step_layer_usage(self.model, self.criterion, self.sample, self.plan.seed, self.parallel, self.worker)
        self.meta_copy = self.parallel.shard(self.model, use)
        if use is not None and use.varies:
            self.events.note(
                "the model may leave layers out, so the workers gather all of it at once: more memory than by layers"
            )

    def build_optimizer(self) -> None:
        """The optimizer, with transfer's learning rate per group, all groups up front."""
        loss, model, transfer = self.loss, self.model, self.tricks.transfer
        own = {id(parameter) for parameter in model.parameters()}
        of_loss = [p for p in (loss.parameters() if loss is not None else ()) if p.requires_grad and id(p) not in own]
        groups = transfer.param_groups(model, 1.0, self.groups) if transfer else None
        self.optimizer = model_optimizer(self.factory, model, of_loss, groups)
        self.phases = self.stages.phases(model, self.total_steps, self.source.steps_per_epoch)
        self.events.note(*check_trained(self.optimizer, model, of_loss))
        self.of_loss = of_loss
        self.apart = [*of_loss, *(self.parallel.in_one_piece(model) if self.meta_copy is not None else ())]
        if self.meta_copy is not None and self.apart:
            disable_foreach(self.optimizer)
        if of_loss:
            self.events.note(f"{len(of_loss)} parameter(s) of the loss {type(loss).__name__} are trained and saved too")
        self.groups_built = groups_of(self.optimizer)
        check_same_settings({"optimizer": type(self.optimizer).__name__, **self.groups_built}, self.worker)

    def look_for_unused_parameters(self) -> None:
        """Whether data parallel must look for parameters without a gradient at each step."""
        self.find_unused = False
        if self.worker.size == 1 or self.meta_copy is not None:
            return
        self.find_unused = self.parallel.find_unused
        if not self.find_unused:
            with self.stages.as_in_last(self.model, self.phases):
                use = step_layer_usage(self.model, self.criterion, self.sample, self.plan.seed, self.parallel, self.worker)
            self.find_unused = use.may_skip_layers
            self.events.note(*use.notes())

    def rates(self) -> Rates:
        """LR scaling and the cycle: warm-up times cycle."""
        tricks, source, schedules, momentum = self.tricks, self.source, [], None
        if tricks.lr_scaling:
            self.why["lr_scaling"] = tricks.lr_scaling.apply(self.optimizer, source.batch_size)
            ramp = tricks.lr_scaling.warmup_schedule(
                self.optimizer,
                source.batch_size,
                total_steps=self.total_steps,
                steps_per_epoch=source.steps_per_epoch,
                cycle_warms_up=tricks.cyclical is not None and tricks.cyclical.warms_up,
            )
            schedules.append(ramp)
        if tricks.cyclical:
            cycle = tricks.cyclical.rates(self.total_steps, source.steps_per_epoch)
            schedules.append(cycle.learning_rate)
            momentum = cycle.momentum
            if momentum:
                check_momentum(self.optimizer)
        return Rates(scale_schedules(*schedules) if schedules else constant(), momentum)

    def run(self, asked: Tricks | None) -> Run:
        """All of it in its slots, with mixup's."""
        rates, mixup, steps = self.rates(), self.tricks.mixup, (self.total_steps, self.source.steps_per_epoch)
        mix = mixup.fill(self.model, self.plan.seed, *steps, self.sample[0]) if mixup else BatchMixer()
        self.clock.pause()
        run = Run(
            plan=self.plan,
            model=self.model,
            optimizer=self.optimizer,
            source=self.source,
            place=self.place,
            rates=rates,
            mix=mix,
            criterion=self.criterion,
            precision=self.precision,
            phases=self.phases,
            clock=self.clock,
            worker=self.worker,
            replicas=self.parallel,
            find_unused=self.find_unused,
            events=self.events,
            why=self.why,
            bad=self.skipped,
            stages=self.stages,
            meta_copy=self.meta_copy,
            sample=self.sample[0],
            least_samples=self.least,
            loss=self.loss,
            of_loss=self.of_loss,
            apart=self.apart,
            written=self.written,
        )
        used = replace(asked or self.tricks, transfer=self.tricks.transfer)
        run.settings = settings_of(run, used, self.groups_built)
        return run
