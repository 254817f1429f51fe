"""Describe what changes when a run is resumed with another length."""

from __future__ import annotations

from typing import Any

from heptane.core.run import Run


def describe_new_length(run: Run, facts: dict[str, Any], step: int, rate: float) -> list[str]:
    """Notes on a run whose planned number of steps differs from its checkpoint's; none if it is the same.

    From this step on, schedules follow the new length as if it had been planned from the start. So a finished cycle
    continues where a cycle of the new length would be, at a higher learning rate.

    Args:
        run: with its new length.
        facts: the checkpoint's facts.
        step: the checkpoint's step.
        rate: the learning rate of the last parameter group at that step.
    """
    before, now = facts.get("planned"), run.total_steps
    if not isinstance(before, int) or before == now:
        return []
    lengths = f"new length: {_epochs(run, now)} instead of {_epochs(run, before)}"
    if step >= now:
        return [f"{lengths}; all steps are done"]
    next_rate, last_rate = (run.base_rates[-1] * run.rates.learning_rate(at) for at in (step, now - 1))
    cycle, warm_up = run.settings.get("cyclical"), run.settings.get("lr_scaling")
    if next_rate == last_rate == rate:
        change = f"the learning rate stays {rate:.3g}"
    else:
        what = "the cycle" if cycle else "the warm-up" if warm_up else "the schedule"
        ends = f", and ends at {last_rate:.3g}" if next_rate != last_rate else ""
        change = (
            f"{what} now follows the new length: the learning rate goes from "
            f"{rate:.3g} at step {step} to {next_rate:.3g} at step {step + 1}{ends}"
        )
    return [f"{lengths}; {change}", *_images(run, before, step), *_mixup(run, before, step), *_frozen(run, before, step)]


def _epochs(run: Run, total_steps: int) -> str:
    return f"{total_steps / run.source.steps_per_epoch:.4g} epochs ({total_steps} steps)"


def _images(run: Run, before: int, step: int) -> list[str]:
    """A note if images had full size already and are small again."""
    resize = run.plan.extras.resize
    if resize is None or resize.sizes(before)(max(step - 1, 0)) is not None or resize.sizes(run.total_steps)(step) is None:
        return []
    return [f"images are scaled down to {resize.size} pixels again until step {round(resize.until * run.total_steps)}"]


def _mixup(run: Run, before: int, step: int) -> list[str]:
    """A note if mixup was off for the last epochs and is on again."""
    epochs = (run.settings.get("mixup") or {}).get("off_last_epochs", 0)
    off = round(epochs * run.source.steps_per_epoch)
    if not off or step < before - off or step >= run.total_steps - off:
        return []
    return [
        f"mixup is on again until step {run.total_steps - off}: it is off for the last {epochs:g} epochs of the new length"
    ]


def _frozen(run: Run, before: int, step: int) -> list[str]:
    """A note if layer groups trained already and are frozen again."""
    num_groups = len(run.optimizer.param_groups) - bool(run.of_loss)
    phases = run.stages.phases(run.model, before, run.source.steps_per_epoch)
    was = [phase.frozen or 0 for phase in phases if phase.start <= max(step - 1, 0)][-1]
    now = next(phase.frozen or 0 for phase in run.phases if phase.stop > step)
    if now <= was:
        return []
    return [f"{now} of {num_groups} layer groups are frozen again (before: {was}): they unfreeze over the new length"]
