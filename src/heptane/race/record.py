"""The content of ``race.json``: the race, its runs and its findings so far."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from heptane.race.arms import Arm
from heptane.race.attempt import Trial
from heptane.race.findings import findings
from heptane.race.target import too_few_samples
from heptane.race.tuning import Tuning
from heptane.session.run_folder import clean

SCHEMA = 2


@dataclass(frozen=True)
class Progress:
    """The state of a race; trials by (arm, value, tuning seed), runs by (arm, seed)."""

    status: str
    started: float
    elapsed_seconds: float
    tuning: Mapping[str, Tuning]
    trials: Mapping[tuple[str, float, int], Trial]
    runs: Mapping[tuple[str, int], Trial]


def race_record(
    identity: Mapping[str, Any], arms: Sequence[tuple[Arm, float, float]], facts: Mapping[str, Any], done: Progress
) -> dict[str, Any]:
    """Build the record of a race.

    Args:
        identity: ``target`` and ``plan``; only runs of the plan's seeds are included.
        arms: each with its learning-rate factor and its planned epochs.
        facts: ``environment``, ``num_valid``, and optionally ``command``, ``data``, ``model``, ``settings``, ``reasons``.
        done: what was run.
    """
    from heptane.base.version import __version__

    reasons = facts.get("reasons", {})
    trials = [{"side": side, "value": v, "again": n, "attempt": t.record()} for (side, v, n), t in done.trials.items()]
    record: dict[str, Any] = clean(
        {
            "schema": SCHEMA,
            "heptane": __version__,
            "status": done.status,
            "command": facts.get("command", ""),
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(done.started)),
            "elapsed_seconds": done.elapsed_seconds,
            "environment": facts["environment"],
            **{key: facts.get(key, {}) for key in ("data", "model", "settings")},
            **identity,
            "num_valid": facts["num_valid"],
            "tuning": {side: _tuning_record(side, tuning, done) for side, tuning in done.tuning.items()},
            "trials": trials,
            "arms": [_arm_record(*arm, identity["plan"]["seeds"], done) for arm in arms],
            "reasons": reasons,
            "notes": list(facts.get("notes", [])),
        }
    )
    why = too_few_samples(record)
    record["notes"] += [f"No verdicts: {why}."] if why else []
    return record | findings(record, reasons)


def _arm_record(arm: Arm, rate: float, epochs: float, seeds: Sequence[int], done: Progress) -> dict[str, Any]:
    runs = [done.runs[arm.name, seed].record() for seed in seeds if (arm.name, seed) in done.runs]
    on = {name: settings for name, settings in arm.tricks.settings().items() if settings}
    return {"name": arm.name, "title": arm.title, "tricks": on, "rate": rate, "epochs": epochs, "runs": runs}


def _tuning_record(side: str, tuning: Tuning, done: Progress) -> dict[str, Any]:
    made = [trial for (name, *_), trial in done.trials.items() if name == side]
    seconds = sum(trial.clocks.get("train", 0.0) for trial in made)
    return {**asdict(tuning), "num_runs": len(made), "seconds": seconds}
