"""Record how a run's model is built, and rebuild it from that record, without its weights."""

from __future__ import annotations

import importlib
import json
import tempfile
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor
from heptane.core.losses import CrossEntropy, Elementwise
from heptane.core.run import Run
from heptane.data.batches import TensorSource
from heptane.model.forward import unwrapped

CLASSES, LABELS, VALUES = "classes", "labels", "values"


def model_facts(model: torch.nn.Module, run: Run, about: dict[str, Any]) -> dict[str, Any]:
    """The entry ``model`` of ``result.json``: the model's class, and what :func:`rebuild` needs.

    ``outputs`` is ``classes`` (scores of mutually exclusive classes), ``labels`` (an independent score per label) or
    ``values``.
    """
    model = unwrapped(model)
    kind, labels = type(model), run.bad.labels
    facts: dict[str, Any] = {
        "name": kind.__name__,
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "num_outputs": labels[0] if labels else None,
        "outputs": _outputs(run),
    }
    if isinstance(run.sample, torch.Tensor):
        facts["input_shape"] = list(first_tensor(run.sample).shape[1:])
    config: Any = getattr(model, "config", None)
    if callable(getattr(config, "to_json_string", None)):  # transformers: rebuilds it without the hub
        facts["config"] = json.loads(config.to_json_string())
    return {**facts, **about.get("model", {})}


def _outputs(run: Run) -> str:
    criterion = run.criterion
    if isinstance(criterion, CrossEntropy):
        return CLASSES
    if isinstance(criterion, Elementwise):
        return LABELS if criterion.multi_label else VALUES
    targets = run.source.targets if isinstance(run.source, TensorSource) else None
    whole = isinstance(targets, torch.Tensor) and targets.ndim == 1 and not targets.is_floating_point()
    return CLASSES if whole else VALUES


def rebuild(facts: dict[str, Any], where: str) -> torch.nn.Module:
    """Build a recorded model with random weights, without downloads; PyTorch's random state is preserved.

    Args:
        facts: the entry ``model`` of a record.
        where: the run, for messages.

    Raises:
        InputError: the record does not say how to build the model, or it cannot be built here.
    """
    from heptane.pretrained.models import build

    spec, shape, outputs = facts.get("spec"), facts.get("input_shape"), facts.get("num_outputs")
    remedy = f"build it, and pass it: hp.load_run({where!r}, model=...)"
    if not isinstance(spec, str) or not isinstance(shape, list) or not isinstance(outputs, int):
        named = facts.get("class") or facts.get("name") or "a model"
        raise InputError(f"{where} was trained from Python with a {named}, which its files cannot rebuild: {remedy}")
    try:
        with torch.random.fork_rng(devices=[]):
            if spec.startswith("hf:") and isinstance(facts.get("config"), dict):
                return _from_config(facts["config"], shape, outputs)
            return build(spec, input_shape=shape, num_classes=outputs)
    except InputError as error:
        raise InputError(f"{where}: {error}; or {remedy}") from error


def _from_config(config: dict[str, Any], shape: list[int], outputs: int) -> torch.nn.Module:
    hub: Any = importlib.import_module("heptane.pretrained.hubs.transformers_hub")
    with tempfile.TemporaryDirectory(prefix="heptane-") as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        made: torch.nn.Module = hub.build(f"hf:{folder}", shape, outputs)
    return made


def fit_head(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Replace the model's head if its number of outputs differs from the weights'."""
    from heptane.pretrained.freezing import swap_head

    for name, parameter in list(model.named_parameters()):
        held = state.get(name)
        if held is not None and held.shape != parameter.shape and held.shape[1:] == parameter.shape[1:]:
            owner = name.rpartition(".")[0]
            if name.endswith("weight") and isinstance(model.get_submodule(owner), (torch.nn.Linear, torch.nn.Conv2d)):
                swap_head(model, len(held), owner)
