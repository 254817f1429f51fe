"""Choose precision and memory format by timing them before training; the model and the random states are left unchanged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.progress import working
from heptane.base.tree import first_tensor, tree_map
from heptane.core.custom_losses import ModelLoss
from heptane.core.losses import Criterion
from heptane.core.precision.comparison import Comparison
from heptane.core.precision.decisions import decision_key, load_decision, store_decision
from heptane.core.precision.native_dtypes import computes_bf16, describe
from heptane.core.precision.step import PrecisionSettings, check_master_weights
from heptane.core.precision.trial_steps import TrialSteps, Variant, trial_steps
from heptane.model.warm_up import warm_up

KIND, PLAIN = "precision", ("fp32", False)
NOTHING_PAYS = "no variant is clearly faster here"
NO_TIME = "not compared, since a step takes too long"
NO_UNITS = "this processor has no units for 16 bits"

Trial = Callable[[], AbstractContextManager[TrialSteps]]


class Choice(NamedTuple):
    """Type to compute in, memory format, the reason with the timings, and notes."""

    dtype: str
    channels_last: bool
    why: str
    notes: list[str]


@working("measuring a training step in each precision")
def choose_precision(
    trick: PrecisionSettings,
    model: torch.nn.Module,
    criterion: Criterion,
    batch: tuple[Any, Any],
    *,
    planned_steps: int = 0,
    last_rows: int = 0,
) -> Choice:
    """Choose dtype and memory format, by timing those that are "auto"; the result is cached per machine, model and shapes.

    The model itself is run, without a copy, and restored exactly. On a CPU, 16-bit types are considered only where the
    processor computes them natively.

    Args:
        trick: the requested settings.
        model, criterion: the model and its loss.
        batch: inputs and targets, on the model's device.
        planned_steps: of the training; timing may take 2% of it, or 1 s, whichever is more.
        last_rows: samples of an epoch's last batch if it is short; else 0.

    Raises:
        InputError: a variant that was requested by name does not run.
    """
    check_master_weights(model)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    emulated = device.type == "cpu" and not computes_bf16()
    variants = _variants(trick, model, device, emulated)
    for dtype, _ in variants:
        trick.build(dtype, device.type)  # refuses what cannot run here
    notes: list[str] = []
    if trick.dtype == "bf16" and emulated:
        notes.append("mixed_precision.dtype='bf16': this processor has no bf16 units and emulates them, many times slower")
    without = trick.dtype == "auto" and emulated
    trial = partial(trial_steps, trick, model, criterion, batch)
    if len(variants) == 1:
        dtype, channels_last = variants[0]
        if variants[0] != PLAIN:
            _check_runs(trial, criterion, variants[0])
        why = f"fp32: {NO_UNITS}" if without else f"{_label(*variants[0])}: asked for"
    else:
        answer = _answer(trial, trick, model, criterion, batch, variants, planned_steps)
        dtype, channels_last, notes = answer["dtype"], answer["channels_last"], notes + answer["notes"]
        why = answer["why"] + (f"; bf16 left out: {NO_UNITS}" if without else "")
    if channels_last and (failed := _fails_elsewhere(trial, len(first_tensor(batch)), last_rows)):
        if trick.channels_last == "on":
            raise InputError(f"MixedPrecision.channels_last='on': the model fails {failed}; use 'auto' or 'off'")
        notes = [*notes, f"channels last left out: the model fails {failed}"]
        channels_last, why = False, f"{_label(dtype, False)}: channels last fails {failed}"
    return Choice(dtype, channels_last, why, notes)


def keeps_plain(why: str) -> bool:
    """Whether a decision, in the words of :func:`choose_precision`, is plain fp32."""
    return why.startswith(f"{_label(*PLAIN)}: ")


def _variants(trick: PrecisionSettings, model: torch.nn.Module, device: torch.device, emulated: bool) -> list[Variant]:
    """The variants to time. The first is the baseline, used unless another is clearly faster. On a CPU that is channels
    last, in which convolutions are computed anyway: so differences within the noise always lead to the same choice."""
    formats, dtypes = [trick.channels_last == "on"], [trick.dtype]
    if trick.channels_last == "auto" and any(isinstance(m, torch.nn.Conv2d) for m in model.modules()):
        formats = [True, False] if device.type == "cpu" else [False, True]
    if trick.dtype == "auto":
        no_bf16 = device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)
        dtypes = ["fp32"] if emulated else ["fp32", "fp16" if no_bf16 else "bf16"]
    return [(dtype, channels_last) for dtype in dtypes for channels_last in formats]


def _answer(
    trial: Trial,
    trick: PrecisionSettings,
    model: torch.nn.Module,
    criterion: Criterion,
    batch: tuple[Any, Any],
    variants: list[Variant],
    planned_steps: int,
) -> dict[str, Any]:
    """The variant from the cache for this machine, model and shapes, or else by timing."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    name = decision_key(
        {
            "machine": describe(device),
            "model": model_signature(model),
            "batch": [_shapes(part) for part in batch],
            "loss": criterion.name,
            "trick": vars(trick),
            "variants": variants,
        }
    )
    found = load_decision(KIND, name)
    if found and _is_answer(found, variants) and (found["measured"] or planned_steps <= found["planned_steps"]):
        chosen = found["dtype"], found["channels_last"]
        if chosen == PLAIN or not _step_error(trial, criterion, chosen):
            return {**found, "why": f"{found['why']}, measured once on this machine"}
    warm_up(str(device))  # one-time costs of the process must not count for the first variant
    with trial() as steps:
        outcome = Comparison(steps, variants, steps.num_rows, float(planned_steps) * steps.num_rows, device)
        outcome.run()
    return store_decision(KIND, name, _as_answer(outcome, planned_steps), anew=found is not None)


def _as_answer(outcome: Comparison, planned_steps: int) -> dict[str, Any]:
    best, variants = outcome.fastest(), outcome.variants
    if best != PLAIN and PLAIN in variants and not outcome.seconds.get(best):
        best = PLAIN  # a variant that was not timed may not even run
    figures = [f"{_label(*v)} {1000 * min(s):.3g} ms" for v, s in outcome.seconds.items()]
    figures += [f"{_label(*v)} fails" for v in outcome.failed] + [f"{_label(*v)} too slow" for v in outcome.slow]
    measured = len(outcome.seconds) + len(outcome.failed) > 1
    verdict = (NOTHING_PAYS if best == variants[0] else "the fastest here") if measured else NO_TIME
    return {
        "dtype": best[0],
        "channels_last": best[1],
        "why": f"{_label(*best)}: {verdict}, timed on steps of {outcome.rows} samples ({', '.join(figures)})",
        "notes": [f"{_label(*v)} left out: the model fails with it ({error})" for v, error in outcome.failed.items()],
        "measured": measured,
        "planned_steps": planned_steps,
    }


def _is_answer(found: dict[str, Any], variants: list[Variant]) -> bool:
    kinds = {"why": str, "notes": list, "measured": bool, "planned_steps": int}
    return (found.get("dtype"), found.get("channels_last")) in variants and all(
        isinstance(found.get(key), kind) for key, kind in kinds.items()
    )


def _check_runs(trial: Trial, criterion: Criterion, variant: Variant) -> None:
    """Refuse a variant that was requested by name and fails where plain fp32 runs."""
    error = _step_error(trial, criterion, variant)
    if error and not _step_error(trial, criterion, PLAIN):
        what = [f"dtype={variant[0]!r}"] if variant[0] != "fp32" else []
        what += ["channels_last='on'"] if variant[1] else []
        raise InputError(
            f"MixedPrecision {' with '.join(what)}: the model fails with it ({error}); use 'auto', or in the "
            "model replace view by reshape and avoid tensors of a fixed dtype"
        )


def _error(trial: Trial, run: Callable[..., None], *args: Any) -> str:
    """The error that a method of :class:`TrialSteps` raises; empty if it runs."""
    with trial() as steps:
        try:
            run(steps, *args)
        except Exception as raised:
            return one_line(raised)
    return ""


def _step_error(trial: Trial, criterion: Criterion, variant: Variant) -> str:
    """The error that a step of a variant raises on two samples, or, if the model computes its loss, on all; else empty."""
    error = _error(trial, TrialSteps.first_step, variant, 2)
    return _error(trial, TrialSteps.first_step, variant, None) if error and isinstance(criterion, ModelLoss) else error


def _fails_elsewhere(trial: Trial, whole: int, last_rows: int) -> str:
    """Where channels last fails although the plain format runs: in evaluation, tried on two samples since it costs a
    forward pass, or on the short last batch of an epoch; else ""."""
    for training, rows in [(False, min(whole, 2)), *([(True, last_rows)] if 0 < last_rows < whole else [])]:
        failed = _error(trial, TrialSteps.forward, True, rows, training)
        if failed and not _error(trial, TrialSteps.forward, False, rows, training):
            return f"with it {'in training' if training else 'in evaluation'} on {rows} samples ({failed})"
    return ""


def model_signature(model: torch.nn.Module) -> list[Any]:
    """What identifies a model: its classes, the code of their ``forward``, its parameters and buffers."""
    kinds = {type(module) for module in model.modules()}
    code = {f"{kind.__module__}.{kind.__qualname__}": _code(kind) for kind in kinds}
    tensors = [(name, *_facts(t)) for name, t in [*model.named_parameters(), *model.named_buffers()]]
    return [sorted(code.items()), [(n, type(m).__qualname__, m.extra_repr()) for n, m in model.named_modules()], tensors]


def _code(kind: type) -> str:
    code = getattr(getattr(kind, "forward", None), "__code__", None)
    return "" if code is None else hashlib.sha256(code.co_code + repr(code.co_names).encode()).hexdigest()


def _facts(tensor: torch.Tensor) -> tuple[Any, ...]:
    return list(tensor.shape), str(tensor.dtype), tensor.requires_grad


def _shapes(data: Any) -> list[Any]:
    found: list[Any] = []
    tree_map(lambda tensor: found.append(_facts(tensor)) or tensor, data)  # type: ignore[func-returns-value]
    return found


def _label(dtype: str, channels_last: bool) -> str:
    return f"{dtype} channels last" if channels_last else dtype
