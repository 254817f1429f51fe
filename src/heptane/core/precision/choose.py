"""Choose precision and memory format by timing them before training; the model and the random states are left unchanged."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Any

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import torch
from heptane.base.tree import first_tensor, tree_map
from heptane.core.custom_losses import ModelLoss
from heptane.core.losses import Criterion
from heptane.core.precision.comparison import Comparison, compare, fastest
from heptane.core.precision.decisions import decision_key, load_decision, store_decision
from heptane.core.precision.processor import computes_bf16, describe
from heptane.core.precision.step import PrecisionSettings
from heptane.core.precision.trial_steps import TrialSteps
from heptane.model.warm_up import warm_up

KIND, PLAIN = "precision", ("fp32", False)
NOTHING_PAYS = "no variant is clearly faster here"
NO_TIME = "not compared, since a step takes too long"
NO_UNITS = "this processor has no units for 16 bits"


def choose_precision(
    trick: PrecisionSettings,
    model: torch.nn.Module,
    criterion: Criterion,
    inputs: Any,
    targets: Any,
    *,
    planned_steps: int = 0,
    last_rows: int = 0,
    notes: list[str] | None = None,
) -> tuple[str, bool, str]:
    """Choose dtype and memory format, by timing those that are "auto"; the result is cached per machine, model and shapes.

    The model itself is run, without a copy, and restored exactly. On a CPU, 16-bit types are considered only where the
    processor computes them natively.

    Args:
        trick: the requested settings.
        model, criterion: the model and its loss.
        inputs, targets: one batch, on the model's device.
        planned_steps: of the training; timing may take 2% of it, or 1 s, whichever is more.
        last_rows: samples of an epoch's last batch if it is short; else 0.
        notes: notes on variants that do not run are added to it.

    Returns:
        ``(dtype, channels_last, why)``; ``why`` is a sentence with the timings.

    Raises:
        InputError: a variant that was requested by name does not run.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    emulated = device.type == "cpu" and not computes_bf16()
    convolves = any(isinstance(m, torch.nn.Conv2d) for m in model.modules())
    # The first variant is the baseline, used unless another is clearly faster. On a CPU that is channels last, in which
    # convolutions are computed anyway: so differences within the noise always lead to the same choice.
    both = [True, False] if device.type == "cpu" else [False, True]
    formats = {"on": [True], "off": [False], "auto": both if convolves else [False]}[trick.channels_last]
    dtypes = [trick.dtype] if trick.dtype != "auto" else ["fp32", *_shorter(device, emulated)]
    for dtype in dtypes:
        trick.build(dtype, device.type)  # refuses what cannot run here
    notes = [] if notes is None else notes
    if trick.dtype == "bf16" and emulated:
        notes.append("mixed_precision.dtype='bf16': this processor has no bf16 units and emulates them, many times slower")
    out = f"; bf16 left out: {NO_UNITS}" if trick.dtype == "auto" and emulated else ""
    variants = [(dtype, last) for dtype in dtypes for last in formats]
    if len(variants) == 1:
        if variants[0] != PLAIN:
            _check_runs(trick, model, criterion, inputs, targets, variants[0])
        if variants[0][1] and (failed := _fails_elsewhere(trick, model, criterion, inputs, targets, last_rows)):
            raise InputError(f"MixedPrecision.channels_last='on': the model fails {failed}; use 'auto' or 'off'")
        return (*variants[0], f"fp32: {NO_UNITS}" if out else f"{_label(*variants[0])}: asked for")
    answer = _answer(trick, model, criterion, inputs, targets, variants, planned_steps)
    notes += answer["notes"]
    if answer["channels_last"] and (failed := _fails_elsewhere(trick, model, criterion, inputs, targets, last_rows)):
        if trick.channels_last == "on":
            raise InputError(f"MixedPrecision.channels_last='on': the model fails {failed}; use 'auto' or 'off'")
        notes.append(f"channels last left out: the model fails {failed}")
        return answer["dtype"], False, f"{_label(answer['dtype'], False)}: channels last fails {failed}"
    return answer["dtype"], answer["channels_last"], answer["why"] + out


def keeps_plain(why: str) -> bool:
    """Whether a decision, in the words of :func:`choose_precision`, is plain fp32."""
    return why.startswith(f"{_label(*PLAIN)}: ")


def _shorter(device: torch.device, emulated: bool) -> list[str]:
    """The 16-bit types worth timing."""
    if emulated:
        return []
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return ["fp16"]
    return ["bf16"]


def _answer(
    trick: PrecisionSettings,
    model: torch.nn.Module,
    criterion: Criterion,
    inputs: Any,
    targets: Any,
    variants: list[tuple[str, bool]],
    planned_steps: int,
) -> dict[str, Any]:
    """The variant from the cache for this machine, model and shapes, or else by timing."""
    batch, device = len(first_tensor(inputs)), next((p.device for p in model.parameters()), torch.device("cpu"))
    name = decision_key(
        {
            "machine": describe(device),
            "model": model_signature(model),
            "batch": [_shapes(inputs), _shapes(targets)],
            "loss": criterion.name,
            "trick": vars(trick),
            "variants": variants,
        }
    )
    found = load_decision(KIND, name)
    known = found is not None and _is_answer(found, variants)
    if known and found and found["measured"] | (planned_steps <= found["planned_steps"]):
        chosen = found["dtype"], found["channels_last"]
        if chosen == PLAIN or not _error(trick, model, criterion, inputs, targets, chosen):
            return {**found, "why": f"{found['why']}, measured once on this machine"}
    warm_up(str(device))  # one-time costs of the process must not count for the first variant
    with _unchanged(model) as snapshot:
        steps = TrialSteps(trick, model, criterion, inputs, targets, snapshot)
        planned = float(planned_steps) * batch
        outcome = compare(steps, variants, batch=batch, planned_samples=planned, device=steps.device)
        steps.store(False)
    answer = _as_answer(outcome, variants, planned_steps)
    return store_decision(KIND, name, answer, anew=found is not None)


def _as_answer(outcome: Comparison, variants: list[tuple[str, bool]], planned_steps: int) -> dict[str, Any]:
    best, plain = fastest(outcome, variants), variants[0]
    if best != PLAIN and PLAIN in variants and not outcome.seconds.get(best):
        best = PLAIN  # a variant that was not timed may not even run
    figures = [f"{_label(*v)} {1000 * min(s):.3g} ms" for v, s in outcome.seconds.items()]
    figures += [f"{_label(*v)} fails" for v in outcome.failed] + [f"{_label(*v)} too slow" for v in outcome.slow]
    measured = len(outcome.seconds) + len(outcome.failed) > 1
    verdict = (NOTHING_PAYS if best == plain else "the fastest here") if measured else NO_TIME
    notes = [f"{_label(*v)} left out: the model fails with it ({error})" for v, error in outcome.failed.items()]
    return {
        "dtype": best[0],
        "channels_last": best[1],
        "why": f"{_label(*best)}: {verdict}, timed on steps of {outcome.rows} samples ({', '.join(figures)})",
        "notes": notes,
        "measured": measured,
        "planned_steps": planned_steps,
        "probe_seconds": round(outcome.wall, 3),
    }


def _is_answer(found: dict[str, Any], variants: list[tuple[str, bool]]) -> bool:
    kinds = {"why": str, "notes": list, "measured": bool, "planned_steps": int}
    return (found.get("dtype"), found.get("channels_last")) in variants and all(
        isinstance(found.get(key), kind) for key, kind in kinds.items()
    )


def _check_runs(trick: Any, model: Any, criterion: Any, inputs: Any, targets: Any, variant: tuple[str, bool]) -> None:
    """Refuse a variant that was requested by name and fails where plain fp32 runs."""
    error = _error(trick, model, criterion, inputs, targets, variant)
    if error and not _error(trick, model, criterion, inputs, targets, PLAIN):
        what = [f"dtype={variant[0]!r}"] if variant[0] != "fp32" else []
        what += ["channels_last='on'"] if variant[1] else []
        raise InputError(
            f"MixedPrecision {' with '.join(what)}: the model fails with it ({error}); use 'auto', or in the "
            "model replace view by reshape and avoid tensors of a fixed dtype"
        )


def _error(trick: Any, model: Any, criterion: Any, inputs: Any, targets: Any, variant: tuple[str, bool]) -> str:
    """The error that a step of a variant raises; empty if it runs."""
    for rows_tried in sorted({min(2, len(first_tensor(inputs))), len(first_tensor(inputs))}):
        error = ""
        with _unchanged(model) as snapshot:
            steps = TrialSteps(trick, model, criterion, inputs, targets, snapshot)
            try:
                with steps.watched(lambda: False):
                    steps.step(variant, rows_tried)
            except Exception as raised:
                error = one_line(raised)
            steps.store(False)
        if not error or not isinstance(criterion, ModelLoss):
            return error
    return error


def _fails_elsewhere(trick: Any, model: Any, criterion: Criterion, inputs: Any, targets: Any, last_rows: int) -> str:
    """Where channels last fails although the plain format runs: in evaluation, or on the short last batch; else ""."""
    whole = len(first_tensor(inputs))
    for training, rows_tried in [(False, whole), *((mode, last_rows) for mode in (True, False) if 0 < last_rows < whole)]:
        errors = dict[bool, str]()
        for channels_last in (True, False):
            with _unchanged(model) as snapshot:
                steps = TrialSteps(trick, model, criterion, inputs, targets, snapshot)
                try:
                    steps.forward(channels_last, rows_tried, training)
                except Exception as raised:
                    errors[channels_last] = one_line(raised)
                steps.store(False)
            if not errors:
                break
        if list(errors) == [True]:
            return f"with it {'in training' if training else 'in evaluation'} on {rows_tried} samples ({errors[True]})"
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


def _unchanged(model: torch.nn.Module) -> AbstractContextManager[Any]:
    from heptane.model.snapshot import preserved_model

    return preserved_model(model, guarded=False)


def _label(dtype: str, channels_last: bool) -> str:
    return f"{dtype} channels last" if channels_last else dtype
