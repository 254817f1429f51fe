"""How a race is run: warm up, tune both sides, then every arm with every seed in turn (``docs/protocol.md``)."""

from __future__ import annotations

import json
import math
import statistics
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from heptane.base.environment import describe
from heptane.base.errors import InputError
from heptane.base.progress import working
from heptane.base.storage import write_text
from heptane.core.precision.choose import keeps_plain
from heptane.race.arms import ALL, PLAIN, Arm
from heptane.race.attempt import NOT_RUN, REFUSED, STOPPED, RaceSpec, Trial
from heptane.race.findings import settled_arms
from heptane.race.live import LiveTable
from heptane.race.pacing import CAP, SAFETY, cap_seconds
from heptane.race.page import write_race_report
from heptane.race.record import Done, race_record, read_race
from heptane.race.tuning import FIRST_LENGTH, LENGTH_STEP, RATE_STEP, climb, shorten
from heptane.race.verdicts import FIRST_LOOK
from heptane.report import format_duration
from heptane.session.run_folder import RunFolder
from heptane.tricks import Tricks

TUNING_SEED = 2**30  # its runs do not race
TUNING_SHARE = 0.4  # of a budget, at most, for all trials together
DRY_SECONDS = 20.0  # of measuring in a dry run; what is not measured by then is estimated
BUDGET = "the budget"  # how the note of a run begins that it left out or cut short
ENDED = "settled"  # how the note of a run begins that was not needed any more
SPARE = 0.97  # of a fixed time: what a planned length may take


class RaceRunner:
    """A race under way: what it is, what is done, and what is left.

    Args:
        spec: what all arms share.
        arms: those that run; plain and all first.
        chosen: the set that races as ``all``.
        plan: ``epochs``, ``seeds``, ``budget_seconds``, ``tune``, ``peak`` and ``planned_epochs``.
        about: facts for the record.
    """

    def __init__(self, spec: RaceSpec, arms: list[Arm], chosen: Tricks, plan: dict[str, Any], about: dict[str, Any]) -> None:
        self.spec, self.arms, self.chosen, self.plan, self.about = spec, arms, chosen, plan, about
        self.done = Done()
        self.probes: dict[str, tuple[float, float]] = {}
        self.broken: dict[str, str] = {}
        self.estimated: list[str] = []  # arms that a dry run had no time to measure
        self.folder: RunFolder | None = None
        self.table: LiveTable | None = None
        self.environment = describe()

    def go(self, out: Any, *, force: bool, resume: bool, progress: bool) -> dict[str, Any]:
        """Race, and return the record; what is done is in ``race.json`` after every run."""
        if resume:
            names = [arm.name for arm in self.arms]
            self.done, self.about["reasons"] = read_race(Path(out) / "race.json", self._identity(), names)
        self._warm_up()
        if out is not None:
            self.folder = RunFolder(out, force=force, resume=resume)
            if "settings_toml" in self.about:
                write_text(self.folder.path / "settings.toml", self.about["settings_toml"])
        if progress:
            self.table = LiveTable(self.arms, self.plan["seeds"], self.spec.metric)
        try:
            with self.table or nullcontext():
                self._tune()
                for index, seed in enumerate(self.plan["seeds"]):
                    ended, left_out = self._ended(index), self._left_out(index)
                    for arm in self._in_turn(index):
                        self._run(arm, seed, ended.get(arm.name, "") or left_out)
            return self._save("done")
        except BaseException:
            self._save("interrupted")
            raise
        finally:
            if self.folder:
                self.folder.close()

    def dry_run(self) -> dict[str, Any]:
        """The record with ``expected_seconds``: per arm the longest that a run may take, from a few steps of each."""
        found, since = {}, time.perf_counter()
        for arm in sorted(self.arms, key=lambda arm: arm.name not in (PLAIN, ALL)):
            if time.perf_counter() - since > DRY_SECONDS and self.probes and arm.name not in self.probes:
                self.probes[arm.name] = self.probes.get(PLAIN if arm.adds else ALL) or next(iter(self.probes.values()))
                self.estimated.append(arm.name)
            before, per_epoch = self._probe(arm)
            found[arm.name] = self.spec.seconds or before + per_epoch * self._rate_and_length(arm)[1]
        expected = {arm.name: found[arm.name] for arm in self.arms}
        return self._record("planned") | {"expected_seconds": expected, "estimated": self.estimated}

    def _warm_up(self) -> None:
        """A few steps of the first arms: what cannot run is refused, and what the first run would pay for all is paid."""
        first = self.arms[:2]
        for arm in first:
            self._probe(arm)
        if all(arm.name in self.broken for arm in first):
            raise InputError(f"no arm gets through its first steps: {self.broken[first[0].name]}")

    def _probe(self, arm: Arm) -> tuple[float, float]:
        """Seconds before the first step, and per epoch."""
        if arm.name not in self.probes:
            try:
                with working(f"measuring a few steps of {arm.title}"):
                    self.probes[arm.name] = self.spec.seconds_per_epoch(arm)
            except RuntimeError as error:
                self.probes[arm.name], self.broken[arm.name] = (0.0, 0.0), str(error)
        return self.probes[arm.name]

    # Tuning ---------------------------------------------------------------------------------------------------------

    def _tune(self) -> None:
        """The rate of plain training, and the length (or, where that is given, the peak) of the arms with a cycle."""
        if not self.plan["tune"]:
            return
        plain, every, count, epochs = Arm(PLAIN, Tricks()), Arm(ALL, self.chosen), self.plan["tune"], self.plan["epochs"]

        def at_rate(rate: float) -> Trial:
            return self._trial(plain, "rate", rate, rate=rate, epochs=epochs)

        if any(arm.tricks.cyclical is None for arm in self.arms):
            self.done.tuning[PLAIN] = climb(1.0, RATE_STEP, count, at_rate, self.spec.rank)
        if not any(arm.tricks.cyclical for arm in self.arms):
            return
        peak = self.plan["peak"]
        if self.spec.target is not None and self.plan["planned_epochs"] is None:
            needed = [t.epochs for (side, *_), t in self.done.trials.items() if side == PLAIN and t.seconds is not None]
            first = FIRST_LENGTH * min(needed, default=epochs)

            def of_length(length: float) -> Trial:
                run = {"rate": peak, "epochs": length, "raised": self.spec.margin}
                first = self._trial(every, "epochs", length, **run)
                if first.seconds is None:
                    return first
                return max(first, self._trial(every, "epochs", length, again=1, **run), key=self.spec.rank)

            shortest = self.spec.plan.extras.evaluate_every_epochs
            self.done.tuning[ALL] = shorten(first, LENGTH_STEP, count, epochs, shortest, of_length)
            return
        length = self._planned_length(every)

        def at_peak(rate: float) -> Trial:
            return self._trial(every, "peak", rate, rate=rate, epochs=length)

        self.done.tuning[ALL] = replace(climb(peak, RATE_STEP, count, at_peak, self.spec.rank), knob="peak")

    def _trial(self, arm: Arm, knob: str, value: float, again: int = 0, **run: Any) -> Trial:
        """One run with a seed of the tuning; a trial of a rate that is slower than the best so far stops."""
        key = (arm.name, value, again)
        if key not in self.done.trials:
            best = [t.seconds for (name, *_), t in self.done.trials.items() if name == arm.name and t.seconds is not None]
            best = best if knob != "epochs" else []
            left = self._left_for_tuning()
            if left <= 0:
                return Trial(TUNING_SEED + again, NOT_RUN, note=f"{BUDGET} was spent")
            if self.table:
                self.table.tuning(arm, knob, value)
            with working(f"tuning {arm.title}"):
                made = self._train(arm, TUNING_SEED + again, min([*best, left]), final=False, **run)
            self.done.trials[key] = made
            if self.table:
                self.table.tuned(arm, knob, value, made)
            self._save("running")
        return self.done.trials[key]

    def _rate_and_length(self, arm: Arm) -> tuple[float, float]:
        """The factor on the optimizer's rate, and the planned length in epochs."""
        if arm.tricks.cyclical is None:
            return (self.done.tuning[PLAIN].chosen if PLAIN in self.done.tuning else 1.0), self.plan["epochs"]
        tuned = self.done.tuning.get(ALL)
        if tuned and tuned.knob == "epochs":
            return self.plan["peak"], tuned.chosen
        return (tuned.chosen if tuned else self.plan["peak"]), self._planned_length(arm)

    def _planned_length(self, arm: Arm) -> float:
        """Of an arm with a cycle whose length is not tuned: as given, as what fits the time, or as long as any run."""
        if self.plan["planned_epochs"] is not None:
            return float(self.plan["planned_epochs"])
        if self.spec.seconds is None:
            return float(self.plan["epochs"])
        before, per_epoch = self._probe(arm)
        return max((self.spec.seconds - before) * SPARE, 0.1 * self.spec.seconds) / per_epoch

    # Runs -----------------------------------------------------------------------------------------------------------

    def _in_turn(self, index: int) -> list[Arm]:
        """The arms in order; every other seed backwards, within the two that the others are compared with and the rest.

        All begins: where a budget ends in the middle of plain, it is known that plain takes longer than all did.
        """
        first = [arm for name in (ALL, PLAIN) for arm in self.arms if arm.name == name]
        rest = [arm for arm in self.arms if arm not in first]
        return [*first, *rest] if index % 2 == 0 else [*first[::-1], *rest[::-1]]

    def _ended(self, index: int) -> dict[str, str]:
        """The arms that need not run with this seed, since all that they tell is settled; and after how many seeds."""
        if index < FIRST_LOOK:
            return {}
        record = self._record("running", self.plan["seeds"][:index])
        return dict.fromkeys(settled_arms(record), f"{ENDED} before this seed")

    def _left_out(self, index: int) -> str:
        """Why this seed is not raced; empty where it is. A seed is left out whole, so that its pairs are never half made."""
        seeds = self.plan["seeds"]
        if any((arm.name, seeds[index]) in self.done.runs for arm in self.arms):
            return ""
        cut = any(run.status == NOT_RUN and run.note.startswith(BUDGET) for run in self.done.runs.values())
        ended = self._ended(index)
        expected = [self._expected(arm) for arm in self.arms if arm.name not in ended]
        left = self._left()
        if cut or left <= 0 or (index > 0 and SAFETY * sum(expected) > left):  # the first seed is always begun
            return f"{BUDGET} would not have been enough for this seed"
        return ""

    def _run(self, arm: Arm, seed: int, left_out: str) -> None:
        if (arm.name, seed) in self.done.runs:
            return
        refused = next((r for (name, _), r in self.done.runs.items() if name == arm.name and r.status == REFUSED), None)
        if refused:
            made = replace(refused, seed=seed)
        elif self._repeats(arm):
            other = PLAIN if arm.adds else ALL
            made = Trial(seed, NOT_RUN, note=f"{arm.trick} changes nothing here: it would repeat {other}".replace("_", " "))
        elif left_out:
            made = Trial(seed, NOT_RUN, note=left_out)
        elif self._too_late(arm, seed):
            made = Trial(seed, NOT_RUN, note=f"{BUDGET} would not have been enough")
        else:
            made = self._timed(arm, seed)
        self.done.runs[arm.name, seed] = made
        self._save("running")
        if self.table:
            self.table.done(arm, made)

    def _too_late(self, arm: Arm, seed: int) -> bool:
        """Whether too little of the budget is left to learn anything; plain is let run after all, which it may outlast."""
        left, every = self._left(), self.done.runs.get((ALL, seed))
        if arm.name == PLAIN:
            return left <= (every.seconds if every and every.seconds is not None else 0.0)
        return left <= 0 or left < 0.5 * self._expected(arm)

    def _repeats(self, arm: Arm) -> bool:
        """Whether the trick that this arm is about was measured to be off here, so that it can tell nothing."""
        decided = [run.why[arm.trick] for (name, _), run in self.done.runs.items() if name == ALL and arm.trick in run.why]
        return bool(decided) and all(map(keeps_plain, decided))

    def _timed(self, arm: Arm, seed: int) -> Trial:
        rate, epochs = self._rate_and_length(arm)
        cap, left = self._cap(arm, seed), self._left()
        if self.table:
            self.table.begins(arm, seed, self.done.elapsed_seconds, self._expected_left())
        with working(f"racing {arm.title}, seed {seed}"):
            made = self._train(arm, seed, min(cap, left), rate=rate, epochs=epochs)
        if made.status == STOPPED:
            seconds = made.clocks["train"]
            if left < cap:  # nobody knows how long it would have taken
                return replace(made, status=NOT_RUN, note=f"{BUDGET} ended after {format_duration(seconds)} of training")
            what = f"{CAP:g} times the time of {'plain' if arm.adds else 'plain and of all'}"
            return replace(made, note=f"stopped after {format_duration(seconds)}, over {what}: it can only be slower")
        return made

    def _train(self, arm: Arm, seed: int, limit: float, **run: Any) -> Trial:
        """One run of at most ``limit`` seconds of training; the race ends where plain or all is refused."""
        limited = limit if math.isfinite(limit) else None
        made = self.spec.run(arm, seed, max_seconds=limited, progress=self.table or False, **run)
        if made.status == REFUSED and arm.name in (PLAIN, ALL):
            raise InputError(f"arm {arm.name}: {made.note}")
        return made

    def _cap(self, arm: Arm, seed: int) -> float:
        """Seconds of training after which the arm is slower for certain."""
        if self.spec.target is None or arm.trick is None:
            return math.inf
        others = (PLAIN,) if arm.adds else (PLAIN, ALL)
        ran = {key: run.seconds for key, run in self.done.runs.items() if run.status != NOT_RUN}
        times = ([seconds for (name, _), seconds in ran.items() if name == other] for other in others)
        return cap_seconds(*((list(found), ran.get((other, seed))) for found, other in zip(times, others, strict=True)))

    # Time -----------------------------------------------------------------------------------------------------------

    def _left(self) -> float:
        budget = self.plan["budget_seconds"]
        return math.inf if budget is None else budget - self.done.elapsed_seconds

    def _left_for_tuning(self) -> float:
        """Of the budget: its share for the trials, less what they took."""
        budget = self.plan["budget_seconds"]
        spent = sum(trial.clocks.get("wall", 0.0) for trial in self.done.trials.values())
        return math.inf if budget is None else min(TUNING_SHARE * budget - spent, self._left())

    def _expected(self, arm: Arm) -> float:
        """Seconds that a run of this arm will take: as its earlier ones, else as planned."""
        earlier = [r.clocks["wall"] for (name, _), r in self.done.runs.items() if name == arm.name and "wall" in r.clocks]
        if earlier:
            return statistics.median(earlier)
        if self.spec.seconds is not None:
            return self.spec.seconds
        known = (self.probes.get(name) for name in (arm.name, PLAIN if arm.adds else ALL, *self.probes))
        before, per_epoch = next(filter(None, known))
        planned = before + per_epoch * self._rate_and_length(arm)[1]
        trials = [t.seconds for (name, *_), t in self.done.trials.items() if name == PLAIN and t.seconds is not None]
        return min([planned, *trials]) if arm.tricks.cyclical is None else planned

    def _expected_left(self) -> float:
        """Seconds that the rest of the race will take."""
        left = [arm for arm in self.arms for seed in self.plan["seeds"] if (arm.name, seed) not in self.done.runs]
        return min(sum(map(self._expected, left)), self._left())

    # The record -----------------------------------------------------------------------------------------------------

    def _save(self, status: str) -> dict[str, Any]:
        record = self._record(status)
        if self.folder:
            write_text(self.folder.path / "race.json", json.dumps(record, indent=1) + "\n")
            if status != "running":
                with working("writing the report"):
                    write_race_report(record, self.folder.path / "report.html")
        return record

    def _record(self, status: str, seeds: list[int] | None = None) -> dict[str, Any]:
        """The content of ``race.json``, of all seeds or of some."""
        identity = self._identity()
        if seeds is not None:
            identity["plan"] = {**identity["plan"], "seeds": seeds}
        arms = [(arm, *self._rate_and_length(arm)) for arm in self.arms]
        facts = {**self.about, "status": status, "environment": self.environment, "num_valid": self.spec.num_valid}
        return race_record(identity, arms, facts, self.done)

    def _identity(self) -> dict[str, Any]:
        """What makes two races the same one."""
        return {"target": self.spec.target_facts, "plan": self.plan}
