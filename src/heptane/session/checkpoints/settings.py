"""The settings stored in each checkpoint: which may change on resume, and which must match.

``MAY_CHANGE`` and ``MUST_MATCH`` together name every argument of :func:`heptane.fit` and field of :class:`heptane.Extras`.
"""

from __future__ import annotations

from typing import Any

from heptane.base.lazy import torch
from heptane.core.run import Run
from heptane.model.names import clean_name
from heptane.session.checkpoints.describe import ANY, CODE, INPUTS, IS, ORDER, TARGETS, describe
from heptane.tricks import Tricks

MAY_CHANGE = {
    "epochs": "a longer or shorter run; schedules follow the new length, and a note says so",
    "steps": "as epochs",
    "valid": "evaluated from now on",
    "test": "evaluated at the end",
    "metrics": "from the next evaluation on",
    "evaluate_every_epochs": "from now on",
    "target": "also checked against earlier evaluations",
    "max_seconds": "includes the time used before",
    "patience": "counts earlier evaluations too",
    "weights": "which weights are returned",
    "on_nan": "what happens at a NaN or infinite loss or gradient; a note says so",
    "nan_limit": "from now on",
    "skip_bad": "from now on",
    "checkpoint_every": "from now on",
    "keep_checkpoints": "from now on",
    "compile": "the same computation",
    "device": "the same computation, with that device's rounding",
    "progress": "display only",
    "run_dir": "the folder may be moved",
    "force": "has no effect on resume",
    "resume": "the resume itself",
}
"""What may differ on resume, and what happens then."""

MUST_MATCH = {
    "model": "names, shapes and dtypes of parameters; settings of PyTorch's layers",
    "train": "number of samples, checksums of some samples and of the targets, kind of order",
    "optimizer": "class, initial settings of its parameter groups, and their parameters",
    "lr": "a setting of the optimizer's groups",
    "batch_size": "except with DataParallel(keep='share')",
    "loss": "name, or class or function with settings",
    "tricks": "all settings that affect training; not the number of workers, caches or timeouts",
    "seed": "of order, augmentation, mixup and dropout",
    "accumulate": "BatchNorm and dropout depend on micro-batches",
    "clip_norm": "affects each step",
    "augment": "class or function with settings",
    "sampling": "the order of the samples",
    "class_weights": "as weights of the loss",
    "resize": "its settings",
    "average_decay": "affects the averaged weights",
}
"""What must match on resume, and what is compared."""

NOTED = "on_nan"
SINCE = (
    "optimizer.attributes",
    "optimizer.parameters",
    "model",
    INPUTS,
    TARGETS,
    ORDER,
    "sampling",
)  # absent in checkpoints of earlier versions
MOST_SHOWN = 4
BY_DATA = ("class_dim", "all_count", "column", "name")  # of a criterion: determined by data or loss
HOW = (
    "foreach",
    "fused",
    "capturable",
    "differentiable",
    "params",
    "param_names",
    "initial_lr",
)  # implementation, not computation
OF_TRANSFER = ("mode", "head_epochs", "freeze", "unfreeze_every_epochs", "groups", "rate_factor", "lora_rank", "lora_alpha")
OF_SCALE = ("scale", "growth_steps", "floor")


def groups_of(optimizer: torch.optim.Optimizer) -> dict[str, list[Any]]:
    """Settings of an optimizer's parameter groups by name, a value per group; to be read before any schedule."""
    groups = optimizer.param_groups
    names = dict.fromkeys(key for group in groups for key in group if key not in HOW)
    return {name: [describe(group.get(name)) for group in groups] for name in names}


def settings_of(run: Run, tricks: Tricks, groups: dict[str, list[Any]]) -> dict[str, Any]:
    """The settings of ``run`` as JSON.

    Args:
        run: as assembled.
        tricks: the requested tricks, with "auto" resolved.
        groups: from :func:`groups_of`.
    """
    plan, transfer, parallel = run.plan, tricks.transfer, tricks.data_parallel
    precision: dict[str, Any] = {IS: run.precision.name}
    if run.precision.name == "fp16" and tricks.mixed_precision is not None:
        precision |= {name: getattr(tricks.mixed_precision, name) for name in OF_SCALE}
    return {
        **{f"optimizer.{name}": values for name, values in groups.items()},
        "optimizer.attributes": _own_attributes(run.optimizer),
        "optimizer.parameters": _parameters_of(run),
        "model": _modules_of(run.model, run.meta_copy or run.model),
        "clip_norm": plan.clip_norm,
        "accumulate": plan.accumulate,
        "average_decay": plan.extras.average_decay,
        **_of_objects(run),
        "sampling": plan.extras.sampling,
        "resize": describe(plan.extras.resize),
        **{name: describe(getattr(tricks, name)) for name in ("lr_scaling", "cyclical", "mixup", "label_smoothing")},
        "transfer": transfer and {IS: "Transfer"} | {name: describe(getattr(transfer, name)) for name in OF_TRANSFER},
        "precision": precision,
        "sync_batchnorm": parallel.sync_batchnorm if parallel is not None and run.worker.size > 1 else ANY,
        NOTED: plan.extras.on_nan,
    }


def _own_attributes(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Attributes of a custom optimizer beside its parameter groups."""
    plain = (bool, int, float, str, type(None))
    standard = set(vars(torch.optim.Optimizer([torch.zeros(1, device="cpu")], {})))
    own = {name: value for name, value in vars(optimizer).items() if name not in standard and not name.startswith("_")}
    return {name: describe(value) for name, value in own.items() if isinstance(value, plain)}


def _parameters_of(run: Run) -> list[str]:
    """First and last parameter of each group, since optimizer state is stored by position."""
    names = {id(p): clean_name(run.model, name) for name, p in run.model.named_parameters()}
    groups = [[names.get(id(p), "of the loss") for p in group["params"]] for group in run.optimizer.param_groups]
    return [f"{group[0]} to {group[-1]}" if group else "" for group in groups]


def _modules_of(model: torch.nn.Module, whole: torch.nn.Module) -> dict[str, str]:
    """Settings of PyTorch's layers, such as a dropout's rate; SyncBatchNorm counts as BatchNorm.

    Args:
        whole: the model with the layer classes from before it was sharded.
    """
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    found = {"frozen parameters": str(frozen)}
    for name, module in whole.named_modules():
        kind = type(module)
        if kind.__module__.startswith("torch.nn.modules") and not list(module.children()):
            known = "BatchNorm" if "BatchNorm" in kind.__name__ else kind.__name__
            found[clean_name(whole, name) or "itself"] = f"{known}({module.extra_repr()})"
    return found


def as_kept(run: Run) -> dict[str, Any]:
    """The settings of ``run`` for a checkpoint, without attributes of loss or augmentation that change, such as counters."""
    return run.settings | {name: _unchanged(run.settings.get(name), now) for name, now in _of_objects(run).items()}


def differences(before: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Differences in settings: name, old value, new value.

    Example:
        >>> differences({"clip_norm": 1.0, "seed": 0}, {"clip_norm": None, "seed": 0})
        [('clip_norm', 1.0, None)]
    """
    if before == now or ANY in (before, now) or (name.endswith(f".{CODE}") and _other_python(before, now)):
        return []
    if isinstance(before, dict) and isinstance(now, dict) and before.get(IS) == now.get(IS):
        keys = [key for key in dict.fromkeys([*before, *now]) if key != NOTED]
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [(name, before, now)]


def refusal(found: list[tuple[str, Any, Any]]) -> str:
    """The error message for differences; follows "checkpoint PATH ".

    Example:
        >>> refusal([("seed", 0, 1)])
        'was written with seed 0, and this run has 1: resume with seed=0, or start a new run in another folder'
    """
    parts, remedies = [], []
    for name, before, now in found[:MOST_SHOWN]:
        before, now = (_one(value) if name.startswith("optimizer.") else value for value in (before, now))
        whole = name.removesuffix(f".{CODE}")
        was = f"with {name} {show(before)}" if before is not None else f"without {name}"
        parts.append(
            f"{was}, and this run has {show(now)}" if whole == name else f"with another {whole}: same name, different code"
        )
        plain = isinstance(before, (bool, int, float, str, list)) and whole == name and " " not in name
        same = f"{name}={show(before)}" if plain else f"the same {whole}"
        remedies.append(f"without {name}" if before is None else f"with {same}")
    more = f" (and {len(found) - MOST_SHOWN} more)" if len(found) > MOST_SHOWN else ""
    remedy = " and ".join(remedies)
    return f"was written {'; '.join(parts)}{more}: resume {remedy}, or start a new run in another folder"


def show(value: Any) -> str:
    """A setting in a message; an object by its name."""
    if value is None:
        return "none"
    return str(value.get(IS, value)) if isinstance(value, dict) else str(value)


def _one(values: Any) -> Any:
    """One value if all parameter groups have the same, else the list."""
    alike = isinstance(values, list) and values and all(item == values[0] for item in values)
    return values[0] if alike else values


def _of_objects(run: Run) -> dict[str, Any]:
    """Settings that are user objects, which may hold state too."""
    loss, function = describe(run.criterion), getattr(run.criterion, "function", None)
    name = run.criterion.name
    if name == "own":
        loss = describe(function)
    else:
        loss = {IS: name} | {key: value for key, value in loss.items() if key not in (IS, *BY_DATA)}
    augment = getattr(run.plan.extras.augment, "function", run.plan.extras.augment)
    return {"loss": loss, "augment": describe(augment)}


def _unchanged(before: Any, now: Any) -> Any:
    if before == now:
        return before
    if isinstance(before, dict) and isinstance(now, dict):
        return {key: _unchanged(before.get(key, ANY), now.get(key, ANY)) for key in dict.fromkeys([*before, *now])}
    return ANY


def _other_python(before: Any, now: Any) -> bool:
    """Whether two code checksums are from different Python versions, whose bytecode differs anyway."""
    return str(before).partition(":")[0] != str(now).partition(":")[0]
