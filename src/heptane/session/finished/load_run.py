"""Load a run: its model, classes and record, and predict on raw data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.data.cast import Cast
from heptane.data.load_preprocess import load_preprocess
from heptane.data.preprocess import Preprocess
from heptane.model.forward import unwrapped
from heptane.model.names import clean_state, load_clean
from heptane.model.serialise import read_model, unpack
from heptane.pretrained.weights.names import abbreviate
from heptane.session.checkpoints import checkpoint
from heptane.session.checkpoints.restore import read_tensors
from heptane.session.finished.predictions import Prediction, predictions
from heptane.session.history import Goal, best_metric, best_step
from heptane.session.model_record import CLASSES, LABELS, fit_head, rebuild
from heptane.session.run_folder import BEGUN, RunFolder


@dataclass(frozen=True, eq=False)
class LoadedRun:
    """A loaded run.

    Attributes:
        folder: the run's folder.
        model: in eval mode, on the CPU, with the run's weights.
        classes: names of the classes or labels; () for regression.
        record: ``result.json``, or ``run.json`` of an unfinished run.
        preprocess: converts raw data to the model's inputs; None if heptane did not load the run's data.
        step: the weights' optimizer step; None if unknown.
        notes: remarks, such as that the run is unfinished.
        cast: converts inputs of other types if there is no ``preprocess``.
    """

    folder: Path
    model: torch.nn.Module
    classes: tuple[str, ...]
    record: dict[str, Any] = field(repr=False)
    preprocess: Preprocess | None = field(repr=False)
    step: int | None
    notes: tuple[str, ...] = ()
    cast: Cast = field(default_factory=Cast, repr=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of these weights, such as ``valid_accuracy``."""
        return dict(self.record.get("metrics") or {})

    @property
    def outputs(self) -> str:
        """The kind of outputs: classes, labels or values."""
        return str(self.record["model"].get("outputs") or (CLASSES if self.classes else "values"))

    def predict(self, source: Any, *, batch_size: int = 64, top: int | None = None) -> list[Prediction]:
        """Predict on raw data, which is preprocessed as the training data was.

        Args:
            source: image files, folders, manifests, shards, Hugging Face data sets, PIL images or arrays of pixels; a CSV
                or Parquet file, a data frame or rows as dicts; an ``.npz`` file or an array; or a list of these. If the run
                has no ``preprocess``: a tensor, an array or a dict of them, as the model takes them.
            batch_size: samples per forward pass, at least 1.
            top: number of most probable classes to return; None: all.

        Returns:
            A :class:`heptane.Prediction` per sample, in order.

        Raises:
            InputError: something in ``source`` is unreadable or unlike the training data.
        """
        return list(self.stream(source, batch_size=batch_size, top=top))

    def stream(
        self,
        source: Any,
        *,
        batch_size: int = 64,
        top: int | None = None,
        skip_bad: Callable[[str], None] | None = None,
    ) -> Iterator[Prediction]:
        """Like :meth:`predict`, as an iterator; ``skip_bad`` is called with a message per unreadable image."""
        yield from predictions(self, source, batch_size, top, skip_bad)

    def export(self, path: Any = None, *, to: str = "onnx", sample: Any = None, force: bool = False) -> Path:
        """Export the model for use without heptane, and check the export against the model.

        Args:
            path: the file; None: ``model.onnx`` or ``model.pt2`` in the run's folder. ``PATH.json`` beside it describes
                preprocessing and outputs.
            to: "onnx", or "torch" for ``torch.export``.
            sample: raw data for the check, as :meth:`predict` takes it; None: random inputs.
            force: replace an existing file.

        Returns:
            The file.

        Raises:
            InputError: the model cannot be exported, or the export's outputs differ.
        """
        from heptane.session.finished.export import export

        return export(self, path, to, sample, force).path


def load_run(
    folder: Any, *, model: torch.nn.Module | None = None, preprocess: Preprocess | None = None, which: str | None = None
) -> LoadedRun:
    """Load a trained model from its run's folder; nothing is unpickled.

    For an interrupted run, the checkpoint of the best evaluation is used, else the newest; ``notes`` says which. A model
    named on the command line as ``package.module:factory`` is built by calling the factory; pass other custom models.

    Args:
        folder: the folder that ``heptane train --out`` or ``hp.fit(run_dir=...)`` wrote.
        model: a custom model that receives the weights; None: build it from the record.
        preprocess: such as ``hp.load_data(...).preprocess``; None: from the record.
        which: for an unfinished run, the "best" or "newest" checkpoint; None: best if there is one.

    Returns:
        A :class:`LoadedRun`.

    Raises:
        InputError: no run, a race, a model that cannot be built here, or weights of another model.

    Example:
        >>> import tempfile
        >>> net, data = torch.nn.Linear(4, 2), (torch.randn(64, 4), torch.randint(0, 2, (64,)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = hp.fit(net, data, optimizer=torch.optim.AdamW, epochs=1, batch_size=32, run_dir=folder)
        ...     run = hp.load_run(folder, model=torch.nn.Linear(4, 2))
        >>> torch.equal(run.model.weight, net.weight), run.classes
        (True, ('0', '1'))
        >>> [p.label in ("0", "1") for p in run.predict(torch.randn(2, 4))]
        [True, True]
    """
    path = Path(folder)
    record, state, step, notes = _read(path, which)
    facts = record.get("model")
    if not isinstance(facts, dict):
        raise InputError(f"{path}: its record has no model: it may be of another version")
    own = model if model is not None else rebuild(facts, str(path))
    if not isinstance(own, torch.nn.Module):
        raise InputError(f"model of type {type(own).__name__}: expected a torch.nn.Module")
    fill_model(own, state, record, path)
    data = record.get("data") or {}
    if preprocess is None and isinstance(data.get("preprocess"), dict):
        preprocess = load_preprocess(data["preprocess"])
    classes = tuple(data.get("class_names") or ())
    if not classes and facts.get("outputs") in (CLASSES, LABELS) and isinstance(facts.get("num_outputs"), int):
        classes = tuple(str(index) for index in range(max(facts["num_outputs"], 2)))
    own.eval()
    return LoadedRun(path, own, classes, record, preprocess, step, tuple(notes))


def read_record(path: Path) -> tuple[dict[str, Any], bool]:
    """The record of a run, and whether the run is finished.

    Raises:
        InputError: it is missing or damaged.
    """
    if (path / "race.json").exists():
        raise InputError(f"{path} holds a race, whose models are not saved: pass a folder of heptane train")
    ended = (path / "result.json").is_file()
    file = path / ("result.json" if ended else BEGUN)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        unfinished = (path / "settings.toml").exists() or (path / "checkpoints").is_dir()
        hint = ": finish it with heptane train --resume" if unfinished else ""
        what = error.strerror if path.is_dir() else "no such folder"
        raise InputError(f"{path} holds no finished run (result.json: {what}){hint}") from None
    except ValueError:
        raise InputError(f"{file} is damaged (not JSON)") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} is not a result: expected a JSON object")
    return content, ended


def _read(path: Path, which: str | None) -> tuple[dict[str, Any], dict[str, Any], int | None, list[str]]:
    """A run's record, its weights under clean names, their step, and notes."""
    from safetensors import SafetensorError

    record, ended = read_record(path)
    if not ended:
        return _from_checkpoint(path, record, which)
    file = path / "model.safetensors"
    try:
        state = read_model(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        remedy = "it holds the run's weights; copy the whole folder"
        raise InputError(f"{file} cannot be read ({one_line(error)}): {remedy}") from None
    return _with_spec(record, path), state, (record.get("weights") or {}).get("step"), []


def _with_spec(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """A record, completed from the settings file if an older version wrote it."""
    facts, data = record.get("model"), record.get("data") or {}
    if not isinstance(facts, dict) or "outputs" in facts or not (path / "settings.toml").is_file():
        return record
    from heptane.session.settings import read_file

    more = {"spec": read_file(path / "settings.toml").get("model"), "input_shape": data.get("input_shape")}
    return record | {"model": {**more, "num_outputs": data.get("num_classes"), **facts}}


def _from_checkpoint(
    path: Path, record: dict[str, Any], which: str | None
) -> tuple[dict[str, Any], dict[str, Any], int | None, list[str]]:
    folder = RunFolder.checkpoints_of(path)
    newest, notes = checkpoint.find_newest(folder)
    if newest is None:
        raise InputError(f"{path} holds a run without checkpoints: wait for its first one, or train again")
    target, history = record.get("target") or {}, newest.facts["history"]
    goal = Goal(target["metric"], float(target["value"])) if target else None
    step, saved = best_step(history, goal), newest
    if which != "newest" and step is not None and step != newest.facts["step"]:
        saved = checkpoint.find_step(folder, step) or newest
    at = saved.facts["step"]
    known: dict[str, Any] = next((r for r in history if r["step"] == at), {})
    metric = best_metric(history, goal)
    best = f", the best evaluation so far ({metric} {known[metric]:.4g})" if at == step and metric in known else ""
    notes = [*notes, f"{path} holds an unfinished run: loaded the weights of step {at}{best}"]
    if saved.facts.get("switches"):
        notes.append("its optimizer evaluates with other weights, which only it can compute: loaded the trained ones")
    metrics = {name: value for name, value in known.items() if name.startswith("valid_")}
    return record | {"metrics": metrics, "history": history}, _model_state(saved), at, notes


def _model_state(saved: checkpoint.Saved) -> dict[str, Any]:
    """The model's state in a checkpoint, averaged weights if there are some."""
    tensors = read_tensors(saved)
    try:
        state = dict(unpack(saved.facts["model"], tensors))
        average: dict[str, Any] = unpack(saved.facts.get("average"), tensors) or {}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"checkpoint {saved.path} cannot be read ({one_line(error)}): remove it") from None
    return state | {name: value for name, value in average.items() if name in state}  # a loss may have averaged weights too


def fill_model(model: torch.nn.Module, state: dict[str, Any], record: dict[str, Any], path: Path) -> None:
    """Load a run's state into a model; adapters are merged.

    Raises:
        InputError: the state is of another model.
    """
    from heptane.pretrained import lora

    inner = unwrapped(model)
    fit_head(inner, state)
    _adapt(inner, state, record)
    own = clean_state(model)
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not in the model" for name in state if name not in own]
    for name, value in own.items():
        held = state.get(name)
        if isinstance(value, torch.Tensor) and isinstance(held, torch.Tensor) and value.shape != held.shape:
            wrong.append(f"{name} has shape {tuple(held.shape)}, in the model {tuple(value.shape)}")
    if wrong:
        raise InputError(
            f"the weights in {path} are not of this {type(inner).__name__}: {abbreviate(wrong, 3)}; pass the trained "
            f"model: hp.load_run({str(path)!r}, model=...)"
        )
    load_clean(model, state)
    lora.merge(inner)


def _adapt(model: torch.nn.Module, state: dict[str, Any], record: dict[str, Any]) -> None:
    """Add the adapters that a checkpoint has, if any."""
    from heptane.pretrained import lora

    mark = f".lora_A.{lora.ADAPTER}."
    ranks = {f".{name}".partition(mark)[0][1:]: len(value) for name, value in state.items() if mark in f".{name}"}
    if not ranks:
        return
    tricks = record.get("tricks")
    settings = (tricks.get("transfer") if isinstance(tricks, dict) else None) or {}
    linear = {name: m for name, m in model.named_modules() if type(m) is torch.nn.Linear}
    head = next((module for name, module in linear.items() if name not in ranks), None)
    lora.adapt(model, next(iter(ranks.values())), settings.get("lora_alpha"), head, seed=0)
