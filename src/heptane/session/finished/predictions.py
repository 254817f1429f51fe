"""Predict with a loaded run: raw data to names, classes and probabilities."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_range
from heptane.base.lazy import np, torch
from heptane.base.tree import first_tensor, select_rows, tree_map
from heptane.data.cast import to_tensors
from heptane.data.images.image_files import ListedImage
from heptane.data.images.sources import find_images
from heptane.data.tables.chunks import is_large, read_frames
from heptane.model.forward import call, main_output
from heptane.model.modes import eval_mode
from heptane.session.model_record import CLASSES, LABELS

if TYPE_CHECKING:
    from heptane.session.finished.load_run import LoadedRun

ARRAYS = (".npz", ".npy")
Skip = Callable[[str], None]


@dataclass(frozen=True)
class Prediction:
    """The prediction for one sample.

    Attributes:
        name: the file, or the number of the row.
        label: the most probable class; None for regression, or if the outputs are not finite.
        probability: of ``label``, 0 to 1.
        labels: with several labels per sample, those above 0.5, most probable first; else ``label`` alone.
        probabilities: by class, most probable first.
        value: for regression, one or several numbers in the units of the training data.
    """

    name: str
    label: str | None = None
    probability: float | None = None
    labels: tuple[str, ...] = ()
    probabilities: dict[str, float] = field(default_factory=dict)
    value: float | tuple[float, ...] | None = None

    def record(self) -> dict[str, Any]:
        """The prediction as JSON."""
        if self.value is not None:
            return {"name": self.name, "value": list(self.value) if isinstance(self.value, tuple) else self.value}
        found = {
            "name": self.name,
            "class": self.label,
            "probability": self.probability,
            "probabilities": self.probabilities,
        }
        return found if self.labels == (self.label,) else {**found, "classes": list(self.labels)}


def predictions(
    run: LoadedRun, source: Any, batch_size: int, top: int | None, skip_bad: Skip | None = None
) -> Iterator[Prediction]:
    """A prediction per sample of ``source``; see :meth:`heptane.session.finished.load_run.LoadedRun.predict`."""
    check_range("batch_size", batch_size, 1, whole=True)
    if top is not None:
        check_range("top", top, 1, whole=True)
    for names, inputs in batches_of(run, source, batch_size, skip_bad):
        for start in range(0, len(names), batch_size):
            part = slice(start, start + batch_size)
            yield from _read(run, names[part], run_model(run, select_rows(inputs, part)), top)


def run_model(run: LoadedRun, inputs: Any) -> torch.Tensor:
    """The model's outputs for preprocessed inputs, as float32 on the CPU."""
    device = next((p.device for p in run.model.parameters()), torch.device("cpu"))
    moved = tree_map(lambda tensor: tensor.to(device), inputs)
    if run.preprocess is None:  # convert types as in training
        run.cast.learn(run.model, moved, None)
        moved = run.cast.inputs(moved)
    try:
        with eval_mode(run.model), torch.inference_mode():
            output, _ = main_output(call(run.model, moved))
    except (RuntimeError, TypeError, IndexError) as error:
        shape = tuple(first_tensor(inputs).shape[1:])
        raise InputError(
            f"the model does not accept samples of shape {shape}: {str(error).splitlines()[0] if str(error) else error}; "
            "pass samples as in training"
        ) from error
    if not isinstance(output, torch.Tensor):
        raise InputError(f"the model returns a {type(output).__name__}, not a tensor: call run.model yourself")
    return output.float().cpu()


def _read(run: LoadedRun, names: list[str], output: torch.Tensor, top: int | None) -> Iterator[Prediction]:
    if run.outputs == CLASSES and output.ndim == 2 and output.shape[1] > 1:
        yield from _ranked(run, names, output.softmax(1), output, top)
    elif run.outputs in (CLASSES, LABELS) and output[0].numel() == 1:
        second = output.reshape(-1, 1).sigmoid()
        yield from _ranked(run, names, torch.cat([1 - second, second], 1), output.reshape(-1, 1), top)
    elif run.outputs == LABELS and output.ndim == 2:
        yield from _ranked(run, names, output.sigmoid(), output, top, several=True)
    else:
        values = output if run.preprocess is None else run.preprocess.outputs(output)
        for name, value in zip(names, values.reshape(len(values), -1).tolist(), strict=True):
            yield Prediction(name, value=value[0] if len(value) == 1 else tuple(value))


def _ranked(
    run: LoadedRun, names: list[str], shares: torch.Tensor, raw: torch.Tensor, top: int | None, several: bool = False
) -> Iterator[Prediction]:
    known = run.classes if len(run.classes) == shares.shape[1] else tuple(map(str, range(shares.shape[1])))
    finite = raw.flatten(1).isfinite().all(1).tolist()
    found, order = shares.sort(dim=1, descending=True, stable=True)
    for name, sound, values, at in zip(names, finite, found.tolist(), order.tolist(), strict=True):
        if not sound:  # NaN outputs have no class
            yield Prediction(name)
            continue
        ranked = {known[index]: value for index, value in zip(at, values, strict=True)}
        label = known[at[0]]
        labels = tuple(key for key, value in ranked.items() if value > 0.5) if several else (label,)
        shown = ranked if top is None else dict(list(ranked.items())[:top])
        yield Prediction(name, label, values[0], labels, shown)


def batches_of(run: LoadedRun, source: Any, size: int, skip_bad: Skip | None) -> Iterator[tuple[list[str], Any]]:
    """Names and preprocessed inputs; image files and large tables a part at a time, to bound memory."""
    if run.preprocess is None:
        inputs = _as_taken(run, source)
        yield [str(index) for index in range(len(first_tensor(inputs)))], inputs
    elif run.preprocess.kind == "images":
        yield from _images(run.preprocess, source, size, skip_bad)
    elif is_large(source):
        yield from map(run.preprocess.inputs, read_frames(source))
    else:
        yield run.preprocess.inputs(source)


def _images(preprocess: Any, source: Any, size: int, skip_bad: Skip | None) -> Iterator[tuple[list[str], Any]]:
    count = 0
    for group in _groups(_items(source), size):
        for names, inputs in _prepared(preprocess, group, count, skip_bad):
            count += len(names)
            yield names, inputs


def _groups(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Up to ``size`` images each; an array or a file of arrays, which may hold several, by itself."""
    waiting: list[Any] = []
    for item in items:
        path = isinstance(item, (str, os.PathLike))
        alone = Path(item).suffix.lower() in ARRAYS if path else isinstance(item, (torch.Tensor, np.ndarray))
        if waiting and (alone or len(waiting) == size):
            yield waiting
            waiting = []
        if alone:
            yield [item]
        else:
            waiting.append(item)
    if waiting:
        yield waiting


def _prepared(preprocess: Any, group: list[Any], count: int, skip_bad: Skip | None) -> Iterator[tuple[list[str], Any]]:
    """Inputs of some images, unnamed ones numbered from ``count``; one by one if unreadable images are skipped."""
    try:
        names, inputs = preprocess.inputs(group)
    except InputError as error:
        if skip_bad is None:
            raise
        if len(group) == 1:
            skip_bad(str(error))
            return
        for item in group:
            for names, inputs in _prepared(preprocess, [item], count, skip_bad):
                count += len(names)
                yield names, inputs
        return
    yield [str(count + index) if name == str(index) else name for index, name in enumerate(names)], inputs


def _items(source: Any) -> Iterator[Any]:
    """The images of a source: of manifests and the like, files in folders, entries of lists, else the source itself."""
    from heptane.data.images.image_preprocess import image_files

    if isinstance(source, (list, tuple)):
        for item in source:
            yield from _items(item)
    elif (images := find_images(source)) is not None:
        yield from (ListedImage(images, index) for index in range(len(images)))
    elif isinstance(source, (str, os.PathLike)) and Path(source).expanduser().is_dir():
        yield from image_files(Path(source).expanduser())
    else:
        yield source


def _as_taken(run: LoadedRun, source: Any) -> Any:
    """Inputs for a model whose preprocessing is unknown."""

    def made(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: made(item) for key, item in value.items()}
        if not isinstance(value, (torch.Tensor, np.ndarray)):
            raise InputError(
                f"source of type {type(value).__name__}: heptane did not load this run's data, so pass a tensor or array as "
                "the model takes it, or load_run(..., preprocess=hp.load_data(...).preprocess)"
            )
        return to_tensors(value)

    inputs = made(source)
    if not len(first_tensor(inputs)):
        raise InputError("nothing to predict: source has 0 samples")
    return inputs
