"""The user's metrics: torchmetrics and collections, functions of predictions and targets, functions of the model."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import tree_copy
from heptane.core.losses import same_up_to_ones
from heptane.distributed.workers import Worker, all_gather
from heptane.model.forward import main_output
from heptane.model.outputs import find_tensors

MODEL_FIRST = frozenset({"model", "net", "network", "module", "m"})
DATA_SECOND = frozenset({"data", "d", "dataset", "loader", "dataloader", "batches", "pairs"})
TARGETS_FIRST = frozenset({"targets", "target", "labels", "label", "y_true", "truth", "y"})
PREDICTIONS_SECOND = frozenset(
    {"predictions", "prediction", "preds", "pred", "y_pred", "y_score", "output", "outputs", "logits"}
)
CERTAIN = 1e4  # a logit whose probability rounds to 1


class MetricError(RuntimeError):
    """A metric failed on at least one worker; raised on all of them."""


def flatten_metrics(metrics: Any) -> dict[str, Any] | None:
    """Metrics by name, with each torchmetrics collection replaced by its members, inside a dict as ``NAME_KEY``.

    Raises:
        InputError: neither a dict nor a collection.
    """
    if metrics is None:
        return None
    if _is_collection(metrics):
        return dict(metrics.items())
    if not isinstance(metrics, dict):
        raise InputError(
            f"metrics of type {type(metrics).__name__}: expected a dict of metrics by name, or a torchmetrics collection"
        )
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        if _is_collection(metric):
            found |= {f"{name}_{key}": part for key, part in metric.items()}
        elif hasattr(metric, "update") or callable(metric):
            found[str(name)] = metric
        else:
            raise InputError(
                f"metrics[{name!r}] of type {type(metric).__name__}: expected a function (predictions, targets) -> number, "
                "or an object with update, compute and reset, as torchmetrics have"
            )
    return found


def _is_collection(metrics: Any) -> bool:
    return any(kind.__name__ == "MetricCollection" for kind in type(metrics).__mro__)


def takes_model(metric: Any) -> bool:
    """Whether a function is ``(model, data) -> number``, judged by its parameter names; otherwise it takes predictions."""
    first, second = _names(metric)
    return first in MODEL_FIRST or second in DATA_SECOND


def _names(metric: Any) -> tuple[str, str]:
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):
        return "", ""
    names = [p.name.lower() for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return names[0] if names else "", names[1] if len(names) > 1 else ""


def call_on_predictions(metric: Any, predictions: Any, targets: Any) -> Any:
    """Call a function of predictions and targets; if its parameter names say targets come first, as in scikit-learn, swap
    them."""
    first, second = _names(metric)
    swapped = first in TARGETS_FIRST and second in PREDICTIONS_SECOND
    return metric(targets, predictions) if swapped else metric(predictions, targets)


def as_number(name: str, value: Any) -> float:
    """The value of a metric as a float.

    Raises:
        InputError: it is not a single number.
    """
    if isinstance(value, numbers.Real):
        return float(value)
    size = getattr(value, "size", None) if not isinstance(value, torch.Tensor) else value.numel()
    if size == 1:
        return float(value)
    kind = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"type {type(value).__name__}"
    raise InputError(f"metrics[{name!r}] returned a value of {kind}: expected one number, such as its mean")


def match_target_shape(output: Any, targets: Any) -> Any:
    """The main output, reshaped to the targets if they differ by dimensions of 1, as (N, 1) and (N,)."""
    main = main_output(output)[0]
    tensors = isinstance(main, torch.Tensor) and isinstance(targets, torch.Tensor)
    if tensors and main.shape != targets.shape and same_up_to_ones(main.shape, targets.shape):
        return main.reshape(targets.shape)
    return main


def nonfinite_mask(output: Any) -> torch.Tensor | None:
    """Rows of an output whose maximum is NaN or infinite; None if there are none. Single -inf entries are valid: they rule
    out a class.

    For an output of several tensors, rows that are invalid in any of them.
    """
    if not isinstance(output, torch.Tensor):
        found = [(len(t), nonfinite_mask(t)) for t in find_tensors(output) if t.ndim]
        rows = [where.cpu() for size, where in found if where is not None and size == found[0][0]]
        return torch.stack(rows).any(0) if rows else None
    if not output.is_floating_point() or not output.ndim or not output.numel():
        return None
    flat = output.reshape(len(output), -1)
    bad = ~(flat.amax(1).isfinite() if flat.shape[1] > 1 else flat[:, 0].isfinite())
    return bad if bool(bad.any()) else None


def replace_with_wrong(output: Any, targets: Any, bad: torch.Tensor) -> torch.Tensor | None:
    """The output with non-finite rows replaced by a confident wrong prediction, so that any metric counts them as wrong.

    None where that is undefined, as in regression.
    """
    if not isinstance(targets, torch.Tensor) or not isinstance(output, torch.Tensor):
        return None
    replaced: torch.Tensor = output.clone()
    if not targets.is_floating_point() and output.ndim == 2 and targets.ndim == 1 and output.shape[1] > 1:
        wrong = (targets[bad].long() + 1) % output.shape[1]
        replaced[bad] = torch.nn.functional.one_hot(wrong, output.shape[1]).to(output) * CERTAIN
        return replaced
    binary = output.shape == targets.shape and bool(((targets == 0) | (targets == 1)).all())
    if not binary:
        return None
    replaced[bad] = torch.where(targets[bad] > 0.5, -CERTAIN, CERTAIN).to(output)
    return replaced


def concatenate(batches: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Predictions and targets of all batches, in memory of their own, since a metric may modify them; lists of samples if
    shapes differ."""
    return _joined([batch[0] for batch in batches]), _joined([batch[1] for batch in batches])


def _joined(parts: list[Any]) -> Any:
    if parts and all(isinstance(part, torch.Tensor) for part in parts):
        if len({part.shape[1:] for part in parts}) == 1:
            return torch.cat(parts)
        return [row.clone() for part in parts for row in part]
    return [tree_copy(part) for part in parts]


def reduces_itself(metric: Any) -> bool:
    """Whether a metric reduces its state over workers itself: torchmetrics' own do unless the state is a list.

    Subclasses of them may hold more state.
    """
    if not type(metric).__module__.startswith("torchmetrics."):
        return False
    parts = [part for part in metric.modules() if hasattr(part, "update")]  # a wrapper contains other metrics
    own = all(type(part).__module__.startswith("torchmetrics.") for part in parts)
    return own and not any(isinstance(state, list) for part in parts for state in getattr(part, "_defaults", {}).values())


def compute_locally(metric: Any) -> Any:
    """The value of a metric on this process's data, without any exchange between workers."""
    parts = list(metric.modules()) if isinstance(metric, torch.nn.Module) else [metric]  # a wrapper contains other metrics
    before = [(part, part.distributed_available_fn) for part in parts if hasattr(part, "distributed_available_fn")]
    try:
        for part, _ in before:
            part.distributed_available_fn = lambda: False
        return metric.compute()
    finally:
        for part, available in before:
            part.distributed_available_fn = available


class MetricSet:
    """The user's metrics during one evaluation."""

    def __init__(self, metrics: dict[str, Any] | None, device: torch.device, worker: Worker) -> None:
        self.metrics, self.worker, self._device = metrics or {}, worker, device
        self._running = {name: metric for name, metric in self.metrics.items() if hasattr(metric, "update")}
        for metric in self._running.values():
            if hasattr(metric, "to"):
                metric.to(device)  # torchmetrics move in place, as modules do
            metric.reset()
        # Each worker sees its share. Only torchmetrics reduces its own state, except lists on a worker without samples.
        # Other metrics are computed on the whole evaluation, on every worker.
        self._whole = {name for name, metric in self._running.items() if worker.size > 1 and not reduces_itself(metric)}
        functions = [name for name in self.metrics if name not in self._running]
        gathers = bool(self._whole) or any(not takes_model(self.metrics[name]) for name in functions)
        self._gathered: list[tuple[Any, Any]] | None = [] if gathers else None
        """outputs and targets on the CPU"""
        self.samples, self.nonfinite, self._unknown = 0, 0, False
        self._error: Exception | None = None

    def add(self, output: Any, targets: Any) -> None:
        """Add one batch. Non-finite rows are counted, and passed to the metrics as wrong predictions where possible."""
        shown = match_target_shape(output, targets)
        bad = nonfinite_mask(shown)
        self.samples += next((len(t) for t in find_tensors(shown) if t.ndim), 0)
        if bad is not None:
            self.nonfinite += int(bad.sum())
            replaced = replace_with_wrong(shown, targets, bad)
            self._unknown |= replaced is None
            shown = shown if replaced is None else replaced
        for name, metric in self._running.items():
            if name not in self._whole:
                given = tree_copy(shown), tree_copy(targets)  # a metric may modify them in place
                self._guarded(name, lambda metric=metric, given=given: metric.update(*given))  # type: ignore[misc]
        if self._gathered is not None:  # copies: a model may reuse its output buffer
            parts = (part.cpu() if isinstance(part, torch.Tensor) else part for part in (shown, targets))
            self._gathered.append(tuple(map(tree_copy, parts)))

    def _guarded(self, name: str, compute: Callable[[], Any]) -> Any:
        """Call ``compute``. With several workers, an error is kept and None returned, so that the others do not wait for
        this worker."""
        if self.worker.size == 1:
            return compute()
        try:
            return compute()
        except Exception as error:
            if self._error is None:
                self._error = MetricError(f"metrics[{name!r}] failed: {type(error).__name__}: {one_line(error)}")
                self._error.__cause__ = error
            return None

    def read(self, model: torch.nn.Module, data: Any) -> tuple[dict[str, float], str]:
        """The values by name, in the order of the metrics, and a note on non-finite outputs ("" if there are none).

        A value is NaN if outputs are not finite and cannot be counted as wrong, as for functions of the model.
        """
        counts = [self.samples, self.nonfinite, int(self._unknown)]
        samples, bad, unknown = (sum(column) for column in zip(*all_gather(counts, self.worker), strict=True))
        gathered = all_gather(self._gathered, self.worker) if self._gathered is not None else []
        batches = [batch for own in gathered for batch in own]
        found = {}

        def value(name: str, metric: Any) -> float:
            if name in self._whole:
                for batch in batches:
                    moved = (tree_copy(t).to(self._device) if isinstance(t, torch.Tensor) else t for t in batch)
                    metric.update(*moved)
                return as_number(name, compute_locally(metric))
            if name in self._running:
                return as_number(name, metric.compute() if self.worker.size > 1 else compute_locally(metric))
            if takes_model(metric):
                return as_number(name, metric(model, data)) if not bad else float("nan")
            return as_number(name, call_on_predictions(metric, *concatenate(batches)))

        for name, metric in self.metrics.items():
            computed = self._guarded(name, lambda name=name, metric=metric: value(name, metric))  # type: ignore[misc]
            found[name] = float("nan") if unknown or computed is None else computed
        failure = next(filter(None, all_gather(str(self._error or ""), self.worker)), "")
        if failure:
            raise MetricError(failure) from self._error
        return found, f"{bad} of {samples} outputs are not finite and count as wrong" if bad else ""


def bind_model(metrics: dict[str, Any] | None, model: torch.nn.Module, data: Any) -> dict[str, Any]:
    """Metrics that are functions of a model get ``model`` and ``data``, also where only the model's tail is run."""

    def bound(metric: Any) -> Any:
        of_model = not hasattr(metric, "update") and takes_model(metric)
        return (lambda net, pairs: metric(model, data)) if of_model else metric

    return {name: bound(metric) for name, metric in (metrics or {}).items()}
