"""The result of a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from heptane.base.lazy import torch
from heptane.core.precision.choose import keeps_plain
from heptane.core.run import Run
from heptane.session.history import Goal, best_step, reached
from heptane.tricks import Tricks


@dataclass(repr=False)
class Result:
    """What came of a run.

    ``history`` has a record per evaluation (per epoch, unless asked otherwise); ``metrics`` are the final ones;
    ``steps`` are ``planned``, ``applied``, ``skipped`` (fp16: tried again at a lower loss scale), ``nonfinite`` (gradients
    or loss) and ``left_out`` (too few samples of the batch could be used).
    ``seconds`` are ``wall``, ``train``, ``cpu`` and ``evaluate``; ``reached`` is the training clock when the target was
    reached, in seconds, or None; ``why`` says for each trick what was decided. ``model`` has the weights of step
    ``weights_step``, and ``metrics`` are theirs; ``best_step`` is the step of the best evaluation, None without validation.
    """

    model: torch.nn.Module
    history: list[dict[str, Any]]
    metrics: dict[str, float]
    seconds: dict[str, float]
    reached: float | None
    target: tuple[str, float] | None
    steps: dict[str, int]
    schedule: dict[str, Any]
    tricks: Tricks
    why: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    loss_state: dict[str, Any] | None = field(default=None, repr=False)
    """of a loss that is a module and holds parameters or buffers: its state at the end, which the loss itself has too"""
    best_step: int | None = None
    weights_step: int | None = None

    def __repr__(self) -> str:
        return f"Result(metrics={self.metrics}, seconds={self.seconds}, reached={self.reached}, steps={self.steps})"


def result_of(
    run: Run,
    history: list[dict[str, Any]],
    metrics: dict[str, float],
    goal: Goal | None,
    evaluate_seconds: float,
    tricks: Tricks,
    weights_step: int | None = None,
) -> Result:
    """What ``run`` came to. All workers of a sharded run must call it."""
    done = int(history[-1]["step"]) if history else 0
    left_out = sum(step < done for step in run.faults.left_out)
    applied = run.faults.applied(done)
    shown = range(0, run.total_steps, max(1, run.total_steps // 400))
    momentum = run.rates.momentum
    return Result(
        model=run.gathered(),
        history=history,
        metrics=metrics,
        seconds={**run.clock.read(), "evaluate": evaluate_seconds},
        reached=reached(history, goal),
        target=goal and (goal.metric, goal.value),
        steps={
            "planned": run.total_steps,
            "applied": applied,
            "skipped": run.skipped,
            "nonfinite": run.meter.nonfinite + done - applied - left_out,
            "left_out": left_out,
        },
        schedule={
            "step": list(shown),
            "learning_rate": [run.base_rates[-1] * run.rates.learning_rate(step) for step in shown],
            "momentum": [momentum(step) for step in shown] if momentum else None,
        },
        tricks=tricks,
        why=run.why,
        loss_state=run.loss.state_dict() if run.loss is not None else None,
        notes=run.events.texts,
        best_step=best_step(history, goal),
        weights_step=done if weights_step is None else weights_step,
    )


def trick_rows(result: Result, reasons: dict[str, str]) -> list[dict[str, Any]]:
    """The seven for a record: name, on or off, settings, why, and whether it leaves this run as it is without it."""
    return [
        {
            "name": name,
            "title": name.replace("_", " "),
            "on": bool(settings),
            "settings": settings,
            "idle": keeps_plain(result.why.get(name, "")),
            "why": "; ".join(filter(None, [reasons.get(name, ""), result.why.get(name, "")])),
        }
        for name, settings in result.tricks.settings().items()
    ]
