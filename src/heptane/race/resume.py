"""Read what an earlier process of the same race left in ``race.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError
from heptane.race.attempt import NOT_RUN, Trial

MAY_GROW = ("seeds", "budget_seconds")  # may differ on resume


@dataclass(frozen=True)
class Earlier:
    """What is done: seconds spent, reasons per trick, trials by (arm, value, seed), runs by (arm, seed)."""

    elapsed_seconds: float
    reasons: dict[str, str]
    trials: dict[tuple[str, float, int], Trial]
    runs: dict[tuple[str, int], Trial]


def read_race(path: Path, identity: Mapping[str, Mapping[str, Any]], arms: Sequence[str]) -> Earlier:
    """Read ``race.json``.

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
        runs = [(arm["name"], run) for arm in content["arms"] for run in arm["runs"] if run["status"] != NOT_RUN]
        return Earlier(
            content["elapsed_seconds"],
            content["reasons"],
            {(t["side"], t["value"], t["again"]): Trial.from_record(t["attempt"]) for t in content["trials"]},
            {(name, run["seed"]): Trial.from_record(run) for name, run in runs},
        )
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
