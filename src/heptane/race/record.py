"""The content of ``race.json``: the race, its runs and its findings so far, written and read again."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.race.arms import Arm
from heptane.race.attempt import NOT_RUN, Trial
from heptane.race.findings import findings
from heptane.race.target import too_few_samples
from heptane.race.tuning import Tuning
from heptane.session.run_folder import clean

SCHEMA = 2
MAY_GROW = ("seeds", "budget_seconds")  # may differ on resume


@dataclass
class Done:
    """What is done of a race: trials by (arm, value, tuning seed), runs by (arm, seed)."""

    trials: dict[tuple[str, float, int], Trial] = field(default_factory=dict)
    runs: dict[tuple[str, int], Trial] = field(default_factory=dict)
    tuning: dict[str, Tuning] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    earlier_seconds: float = 0.0
    """spent by an earlier process"""
    since: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds of the race so far, over all its processes."""
        return self.earlier_seconds + time.perf_counter() - self.since


def race_record(
    identity: Mapping[str, Any], arms: Sequence[tuple[Arm, float, float]], facts: Mapping[str, Any], done: Done
) -> dict[str, Any]:
    """Build the record of a race.

    Args:
        identity: ``target`` and ``plan``; only runs of the plan's seeds are included.
        arms: each with its learning-rate factor and its planned epochs.
        facts: ``status``, ``environment``, ``num_valid``, and optionally ``command``, ``data``, ``model``, ``settings``,
            ``reasons``.
        done: what was run.
    """
    from heptane.base.version import __version__

    trials = [{"side": side, "value": v, "again": n, "attempt": asdict(t)} for (side, v, n), t in done.trials.items()]
    record: dict[str, Any] = clean(
        {
            "schema": SCHEMA,
            "heptane": __version__,
            "status": facts["status"],
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
            "reasons": facts.get("reasons", {}),
            "notes": list(facts.get("notes", [])),
        }
    )
    why = too_few_samples(record)
    record["notes"] += [f"No verdicts: {why}."] if why else []
    return record | findings(record)


def _arm_record(arm: Arm, rate: float, epochs: float, seeds: Sequence[int], done: Done) -> dict[str, Any]:
    runs = [asdict(done.runs[arm.name, seed]) for seed in seeds if (arm.name, seed) in done.runs]
    on = {name: settings for name, settings in arm.tricks.settings().items() if settings}
    return {"name": arm.name, "title": arm.title, "tricks": on, "rate": rate, "epochs": epochs, "runs": runs}


def _tuning_record(side: str, tuning: Tuning, done: Done) -> dict[str, Any]:
    made = [trial for (name, *_), trial in done.trials.items() if name == side]
    seconds = sum(trial.clocks.get("train", 0.0) for trial in made)
    return {**asdict(tuning), "num_runs": len(made), "seconds": seconds}


def read_race(path: Path, identity: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> tuple[Done, dict[str, str]]:
    """What an earlier process of the same race left in ``race.json``: what is done, and the reasons per trick.

    Args:
        path: of the file.
        identity: sections of the record that must be the same, except for the seeds and the budget.
        arms: the names of the arms, in order.

    Raises:
        InputError: the file is missing, damaged or of another version, or holds another race.
    """
    try:
        content = json.loads(path.read_text())
        _compare(path, content, identity, arms)
        done = Done(earlier_seconds=content["elapsed_seconds"])
        done.trials = {(t["side"], t["value"], t["again"]): Trial(**t["attempt"]) for t in content["trials"]}
        runs = [(arm["name"], run) for arm in content["arms"] for run in arm["runs"] if run["status"] != NOT_RUN]
        done.runs = {(name, run["seed"]): Trial(**run) for name, run in runs}
        return done, content["reasons"]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): there is no race to resume") from None
    except json.JSONDecodeError:
        raise InputError(f"{path} is damaged (not JSON): start a new race in another folder") from None
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{path} was written by another version ({what}): start a new race in another folder") from None


def _compare(path: Path, content: Mapping[str, Any], identity: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> None:
    for key, value in identity.items():
        for name, mine in value.items():
            theirs = content[key][name]
            if mine != theirs and name == "seeds" and identity["plan"]["fixed_seeds"]:
                raise InputError(
                    f"{path.parent} holds a race whose number of seeds was fixed at {len(theirs)}, not {len(mine)}: "
                    "start a new race in another folder"
                )
            if mine != theirs and name not in MAY_GROW:
                what = f"{'target' if name == 'value' else name} {theirs}, not {mine}"
                raise InputError(f"{path.parent} holds another race ({what}): choose another folder")
    names = [arm["name"] for arm in content["arms"]]
    if names != list(arms):
        raise InputError(f"{path.parent} holds a race of other arms ({', '.join(names)}): choose another folder")
