"""Examine a trained model on held-out data, and collect example images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heptane.base.errors import Interrupted, one_line
from heptane.base.lazy import torch
from heptane.base.randomness import generator
from heptane.base.tree import first_tensor
from heptane.core.criterion import model_output
from heptane.core.evaluation import run_eval_batch_size
from heptane.core.precision.step import evaluation
from heptane.data.batches import Batch, TensorSource
from heptane.data.sources import as_loader
from heptane.distributed.workers import SINGLE_WORKER
from heptane.model.modes import eval_mode
from heptane.report.examination.collect import Collector
from heptane.report.examination.pictures import Scale, data_uris, is_picture
from heptane.report.examination.summarise import fill_names, summarise

if TYPE_CHECKING:
    from heptane.core.run import Run

SAMPLES = 36  # training images, at most
PART_NAMES = {"valid": "validation", "test": "test"}  # as the run's evaluations name them


@dataclass(frozen=True)
class Pictures:
    """Images for the page: ``samples`` of the training data by class, ``mistakes`` in the record's order."""

    samples: list[tuple[str, list[str]]] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """height and width of the model's input"""
    augmented: bool = False


@dataclass(frozen=True)
class Examination:
    """A record for ``result.json``, images for the page, and a note if the examination failed."""

    record: dict[str, Any] | None = None
    pictures: Pictures = field(default_factory=Pictures)
    note: str = ""


def examine(
    run: Run, model: torch.nn.Module, parts: Mapping[str, Any], about: Mapping[str, Any], interruption: Any = None
) -> Examination:
    """Examine ``model`` on the test data, or on the validation data if there is none.

    Weights, buffers, modes and random states stay as they were. A failure becomes a note and never ends the run.

    Args:
        run: the run that trained the model.
        model: with the final weights.
        parts: "valid" and "test", each data or None.
        about: facts: ``data.class_names``, ``data.mean``, ``data.std``, and ``files`` by part.
        interruption: a signal ends the examination, not the run.
    """
    from heptane.model.snapshot import preserved_model

    part = next((name for name in ("test", "valid") if parts.get(name) is not None), None)
    facts = about.get("data") or {}
    names = list(facts.get("class_names") or facts.get("target_names") or ())
    try:
        with interruption.at_once() if interruption else nullcontext(), preserved_model(model), eval_mode(model):
            shown, labels, augmented = _training_samples(run)
            scale = Scale.of(shown, facts.get("mean") or (), facts.get("std") or ()) if is_picture(shown) else None
            collector, record = Collector(run.criterion), None
            if part is not None:
                _predict(run, model, parts[part], part, collector)
                record = summarise(collector, names or _label(facts), _files(run, about, part), _units(facts))
            if record is not None:
                record = {"part": part, **record, **_train_counts(run, record)}
            pictures = _pictures(shown, labels, augmented, collector, scale, names) if scale is not None else Pictures()
        return Examination(record, pictures)
    except Interrupted:
        return Examination(note="interrupted while examining mistakes: the report does not include them")
    except Exception as error:  # a user's data set may raise anything
        return Examination(note=f"could not examine mistakes ({type(error).__name__}: {one_line(error)})")


def _predict(run: Run, model: torch.nn.Module, data: Any, name: str, collector: Collector) -> None:
    with evaluation(run.precision):
        size, share = run_eval_batch_size(run), SINGLE_WORKER.share
        for inputs, targets in as_loader(data, size, share, run.faults.bad, PART_NAMES[name]):
            targets = run.place.targets(targets)
            moved = run.place.inputs(inputs)
            output = run.precision.to_fp32(model_output(run.criterion, model, moved, targets))
            if not collector.add(moved, output, targets):
                return


def _label(facts: Mapping[str, Any]) -> Sequence[str]:
    """The target column of a regression on a table."""
    label = (facts.get("preprocess") or {}).get("label")
    return () if label is None else (str(label),)


def _units(facts: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Converts predictions to the units of the data; None if they need no conversion."""
    from heptane.data.load_preprocess import load_preprocess  # imports pandas

    known = facts.get("preprocess")
    return load_preprocess(known).outputs if known else None


def _files(run: Run, about: Mapping[str, Any], part: str) -> Sequence[str]:
    """The samples' files; none if samples were skipped, which shifts the indices."""
    moved = any(name.startswith(PART_NAMES[part]) for name in run.faults.bad.found)
    return () if moved else (about.get("files") or {}).get(part) or ()


def _train_counts(run: Run, record: Mapping[str, Any]) -> dict[str, Any]:
    """Training samples per class, if the targets are in memory."""
    targets = run.source.targets if isinstance(run.source, TensorSource) else None
    if record["kind"] != "classes" or not isinstance(targets, torch.Tensor) or targets.numel() != run.source.num_samples:
        return {}
    count = len(record["class_names"])
    whole = targets.detach().cpu().flatten().long()
    whole = whole[(whole >= 0) & (whole < count)]
    return {"train_counts": torch.bincount(whole, minlength=count).tolist()}


def _training_samples(run: Run) -> tuple[Any, Any, bool]:
    """Some training inputs as the model sees them, their targets, and whether they are augmented."""
    source, last = run.source, max(run.total_steps - 1, 0)
    if isinstance(source, TensorSource):
        if not is_picture(source.inputs):
            return None, None, False
        chosen = _chosen(source, run.plan.seed)
        batch = Batch((source.inputs, source.targets), chosen.to(source.inputs.device), len(chosen), run.place, last)
    elif run.worker.size > 1:  # reading needs all workers
        return None, None, False
    else:
        data = source.sample_batches(1)[0]
        if not is_picture(data[0]):
            return None, None, False
        batch = Batch(data, None, len(first_tensor(data[0])), run.place, last)
    inputs, targets = batch.take(slice(None))
    labels = targets.cpu()[:SAMPLES] if isinstance(targets, torch.Tensor) else None
    return inputs.cpu()[:SAMPLES], labels, run.place.augment is not None


def _chosen(source: TensorSource, seed: int) -> torch.Tensor:
    """Indices of samples to show: equally many per class if there are classes."""
    random, targets = generator(seed, "report", 0), source.targets
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point() or targets.ndim != 1:
        return torch.from_numpy(random.permutation(source.num_samples)[: SAMPLES // 2].copy())
    labels = targets.cpu().numpy()
    present = sorted(set(labels.tolist()))
    if len(present) > SAMPLES:
        present = sorted(random.choice(present, SAMPLES, replace=False).tolist())
    each = max(1, min(6, SAMPLES // len(present)))
    found = []
    for label in present:
        found += random.permutation((labels == label).nonzero()[0])[:each].tolist()
    return torch.tensor(found)


def _pictures(
    shown: torch.Tensor, labels: Any, augmented: bool, collector: Collector, scale: Scale, names: Sequence[str]
) -> Pictures:
    by_class: dict[str, list[str]] = {}
    flat = isinstance(labels, torch.Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    known = fill_names(names, max(int(labels.max()) + 1, len(names))) if flat else []
    for at, uri in enumerate(data_uris(shown, scale)):
        name = known[int(labels[at])] if flat and labels[at] >= 0 else ""
        by_class.setdefault(name, []).append(uri)
    if len(by_class) > 1:
        by_class = dict(sorted(by_class.items(), key=lambda item: known.index(item[0]) if item[0] in known else -1))
    worst = [image for _, _, image in collector.worst]
    mistakes = []
    if worst and all(isinstance(image, torch.Tensor) and is_picture(image[None]) for image in worst):
        mistakes = [data_uris(image[None], scale)[0] for image in worst]  # a loader's images may differ in size
    return Pictures(list(by_class.items()), mistakes, (int(shown.shape[2]), int(shown.shape[3])), augmented)
