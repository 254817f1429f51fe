"""How a race is run: order, caps, budget, failures, interruption and resume, with made-up run times."""

import json
import math
from dataclasses import replace

import pytest
import torch

from heptane import Cyclical, InputError, LabelSmoothing, MixedPrecision, Tricks
from heptane.core.fit_options import Plan
from heptane.core.precision.choose import NO_UNITS, NOTHING_PAYS
from heptane.race.arms import make_arms
from heptane.race.attempt import RaceSpec, Trial
from heptane.race.conduct import TUNING_SEED, RaceRunner
from heptane.race.record import Done
from heptane.session.run_folder import RunFolder

THREE = Tricks(cyclical=Cyclical(), label_smoothing=LabelSmoothing(), mixed_precision=MixedPrecision(dtype="bf16"))
LEFT = {"cyclical": 0.5, "label_smoothing": 1.0, "mixed_precision": 0.6}  # what each trick leaves of the time


class MadeUp(RaceSpec):
    """A course whose runs take the time that the tricks leave of 100 s, at once."""

    def __new__(cls, *_, **__):
        return super().__new__(cls)

    def __init__(self, target=0.9, seconds=None, failing=None, plain=100.0, why=None):
        super().__init__(
            model=None,
            train=None,
            valid=([0], [0] * 10_000),
            test=None,
            metrics=None,
            plan=Plan.of(optimizer=torch.optim.SGD, epochs=1, evaluate_every_epochs=0.5),
            metric="valid_accuracy",
            target=target,
            seconds=seconds,
        )
        object.__setattr__(self, "log", [])
        object.__setattr__(self, "failing", failing or {})
        object.__setattr__(self, "plain", plain)
        object.__setattr__(self, "why", why or {})

    def seconds_per_epoch(self, arm, few=2, more=8):
        return 0.0, 10.0 * math.prod(LEFT[name] for name in arm.tricks.on if name != "cyclical")

    def run(self, arm, seed, *, rate, epochs, max_seconds=None, raised=0.0, final=True, progress=False):
        self.log.append((arm.name, seed, rate, epochs, max_seconds))
        failure = self.failing.get((arm.name, seed)) or self.failing.get(arm.name)
        if isinstance(failure, BaseException):
            raise failure
        if failure:
            return replace(failure, seed=seed)
        seconds = self.plain * math.prod(LEFT[name] for name in arm.tricks.on) * (1 + 0.01 * (seed % 7))
        if arm.tricks.cyclical is None:
            seconds *= 1 + abs(math.log(rate / 3))  # three times the user's rate is the best one
        if arm.tricks.cyclical and epochs < 4:
            return Trial(seed, "missed", best=0.88, epochs=epochs, clocks={"train": seconds, "wall": seconds})
        if max_seconds is not None and seconds > max_seconds:
            return Trial(seed, "stopped", best=0.5, clocks={"train": max_seconds, "wall": max_seconds})
        curve = [{"seconds": seconds, "epoch": 1, "value": 0.9}]
        status, reached = ("reached", seconds) if self.target else ("done", None)
        return Trial(
            seed,
            status,
            reached,
            0.9 + 1 / seconds,
            seconds / 10,
            {"train": seconds, "wall": seconds},
            curve=curve,
            why=self.why,
        )


def plan(**changed):
    return {
        "epochs": 20.0,
        "seeds": [0, 1, 2],
        "budget_seconds": None,
        "fixed_seeds": False,
        "tune": 0,
        "peak": 4.0,
        "planned_epochs": None,
        **changed,
    }


def conduct(course, out=None, names=None, resume=False, **changed):
    made = RaceRunner(course, make_arms(THREE, names), THREE, plan(**changed), {})
    return made.go(out, force=False, resume=resume, progress=False)


def verdicts(record):
    return {effect["trick"]: effect["verdict"] for effect in record["effects"]}


def test_finds_the_truth():
    record = conduct(MadeUp(), seeds=[0, 1, 2, 3, 4])
    assert record["speedup"]["estimate"] == pytest.approx((1 + math.log(3)) / 0.3, rel=0.01)
    assert verdicts(record) == {"cyclical": "helps", "label_smoothing": "no difference", "mixed_precision": "helps"}
    assert [row["trick"] for row in record["not_raced"]] == ["data_parallel", "lr_scaling", "mixup", "transfer"]


def test_arms_are_interleaved_seeds_paired_and_every_other_seed_runs_backwards():
    course = MadeUp()
    conduct(course, names=["plain", "all", "all-cyclical", "all-mixed_precision"])
    assert [(name, seed) for name, seed, *_ in course.log] == [
        *(("all", 0), ("plain", 0), ("all-cyclical", 0), ("all-mixed_precision", 0)),
        *(("plain", 1), ("all", 1), ("all-mixed_precision", 1), ("all-cyclical", 1)),
        *(("all", 2), ("plain", 2), ("all-cyclical", 2), ("all-mixed_precision", 2)),
    ]


def test_tunes_both_sides_with_seeds_that_do_not_race():
    course = MadeUp()
    record = conduct(course, tune=3)
    tuning = record["tuning"]
    assert tuning["plain"]["chosen"] == 3.0
    assert tuning["plain"]["tried"] == [1.0, 3.0, 9.0]
    assert tuning["all"]["knob"] == "epochs"
    assert tuning["all"]["chosen"] == min(length for length in tuning["all"]["tried"] if length >= 4)  # shorter ones miss
    trials = [seed for _, seed, *_ in course.log if seed >= TUNING_SEED]
    assert len(trials) == tuning["plain"]["num_runs"] + tuning["all"]["num_runs"]
    for arm in record["arms"]:
        cycle = "cyclical" in arm["tricks"]
        assert arm["rate"] == (4.0 if cycle else 3.0)
        assert arm["epochs"] == (tuning["all"]["chosen"] if cycle else 20.0)
    assert "Tuned before the race" in record["summary"]


def test_a_trial_that_is_slower_than_the_best_so_far_stops():
    course = MadeUp()
    conduct(course, tune=3)
    limits = [limit for name, seed, _, _, limit in course.log if name == "plain" and seed == TUNING_SEED]
    assert limits[0] is None
    assert limits[1] == pytest.approx(100 * (1 + math.log(3)) * (1 + 0.01 * (TUNING_SEED % 7)))


def test_a_given_length_is_not_tuned_but_the_peak_is():
    record = conduct(MadeUp(), tune=2, planned_epochs=5.0)
    assert record["tuning"]["all"]["knob"] == "peak"
    assert {arm["epochs"] for arm in record["arms"] if "cyclical" in arm["tricks"]} == {5.0}


def test_an_arm_stops_once_it_can_only_be_slower_and_says_so():
    slow = MadeUp(plain=100.0)
    LEFT["label_smoothing"] = 4.0
    try:
        record = conduct(slow, tune=3)
    finally:
        LEFT["label_smoothing"] = 1.0
    added = next(arm for arm in record["arms"] if arm["name"] == "plain+label_smoothing")
    assert {run["status"] for run in added["runs"]} == {"stopped"}
    assert "1.5 times the time of plain: it can only be slower" in added["runs"][0]["note"]
    assert verdicts(record)["label_smoothing"] == "hurts"


def test_a_failed_arm_does_not_lose_the_others():
    failing = {"all-cyclical": Trial(0, "failed", note="RuntimeError: out of memory")}
    record = conduct(MadeUp(failing=failing), fixed_seeds=True)
    runs = {arm["name"]: [run["status"] for run in arm["runs"]] for arm in record["arms"]}
    assert runs["all-cyclical"] == ["failed"] * 3
    assert runs["all-mixed_precision"] == ["reached"] * 3
    cyclical = next(effect for effect in record["effects"] if effect["trick"] == "cyclical")
    assert cyclical["without"]["values"] == [None, None, None]  # a run that fails has not reached the target
    assert cyclical["arrived"] == {"without": [3, 6], "with": [6, 6]}


def test_an_arm_that_is_refused_is_not_tried_again_and_its_trick_is_not_applicable():
    failing = {"all-mixed_precision": Trial(0, "refused", note="fp16 on a CPU")}
    course = MadeUp(failing=failing)
    record = conduct(course)
    assert sum(name == "all-mixed_precision" for name, *_ in course.log) == 1
    assert "mixed_precision" not in verdicts(record)
    assert {"trick": "mixed_precision", "why": "fp16 on a CPU"} in record["not_raced"]


@pytest.mark.parametrize("why", [f"fp32: {NOTHING_PAYS}, timed on steps of 4 samples", f"fp32: {NO_UNITS}"])
def test_an_arm_that_would_repeat_another_is_not_run(why):
    course = MadeUp(why={"mixed_precision": why})
    record = conduct(course)
    assert {name for name, *_ in course.log} == {
        "plain",
        "all",
        *("all-cyclical", "all-label_smoothing", "plain+cyclical", "plain+label_smoothing"),
    }
    assert "mixed_precision" not in verdicts(record)


def test_channels_last_alone_is_a_difference_and_is_raced():
    course = MadeUp(why={"mixed_precision": f"fp32 channels last: {NOTHING_PAYS}, timed on steps of 4 samples"})
    assert "plain+mixed_precision" in {
        arm["name"] for arm in conduct(course)["arms"] if arm["runs"][0]["status"] == "reached"
    }


def test_a_budget_leaves_out_what_does_not_fit_and_says_so(monkeypatch):
    now = [0.0]
    course = MadeUp()
    run = MadeUp.run

    def ticking(self, *args, **kwargs):
        made = run(self, *args, **kwargs)
        now[0] += made.clocks.get("wall", 0.0)
        return made

    monkeypatch.setattr(MadeUp, "run", ticking)
    monkeypatch.setattr(Done, "elapsed_seconds", property(lambda _: now[0]))
    record = conduct(course, budget_seconds=600.0)
    statuses = [run["status"] for arm in record["arms"] for run in arm["runs"]]
    assert "not run" in statuses
    assert "reached" in statuses
    assert record["elapsed_seconds"] <= 600
    plain = next(arm for arm in record["arms"] if arm["name"] == "plain")
    assert plain["runs"][0]["status"] == "reached"


def test_a_run_that_the_budget_cuts_off_is_unknown_not_infinite():
    cut = Trial(2, "stopped", clocks={"train": 5.0, "wall": 5.0})
    record = conduct(MadeUp(failing={("all", 2): cut}), names=["plain", "all"], budget_seconds=1e6)
    assert record["speedup"]["values"][2] is None
    assert record["speedup"]["arrived"] == {"without": [2, 2], "with": [2, 2]}  # unknown, not missed
    every = next(arm for arm in record["arms"] if arm["name"] == "all")
    assert "the budget ended" in every["runs"][2]["note"]


def test_a_budget_that_ends_in_the_middle_of_plain_gives_a_speed_up_of_at_least():
    cut = Trial(0, "stopped", clocks={"train": 500.0, "wall": 500.0})
    arrived = Trial(0, "reached", seconds=40.0, clocks={"train": 40.0, "wall": 41.0})
    course = MadeUp(failing={("plain", 0): cut, ("all", 0): arrived})
    record = conduct(course, names=["plain", "all"], seeds=[0], budget_seconds=1e6)
    assert record["headline"] == "At least 12.5x faster to 90.0%, in this one seed"
    assert "40 s with the tricks, over 8 min 20 s without, when the budget ended. No verdict." in record["sentence"]
    assert record["speedup"]["estimate"] is None
    sooner = MadeUp(failing={("plain", 0): Trial(0, "stopped", clocks={"train": 39.0}), ("all", 0): arrived})
    assert "At least" not in conduct(sooner, names=["plain", "all"], seeds=[0], budget_seconds=1e6)["sentence"]


def test_an_interrupted_race_goes_on_where_it_stopped(tmp_path):
    course = MadeUp(failing={("all-cyclical", 1): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        conduct(course, tmp_path / "race", tune=3)
    saved = json.loads((tmp_path / "race" / "race.json").read_text())
    assert saved["status"] == "interrupted"
    assert (tmp_path / "race" / "report.html").exists()
    again = MadeUp()
    record = conduct(again, tmp_path / "race", resume=True, tune=3)
    assert record["status"] == "done"
    first = [(name, seed) for name, seed, *_ in course.log[:-1]]
    second = [(name, seed) for name, seed, *_ in again.log]
    assert not set(first) & set(second)
    whole = MadeUp()
    unbroken = conduct(whole, tune=3)
    assert len(first) + len(second) == len(whole.log)
    assert record["speedup"] == unbroken["speedup"]
    assert record["effects"] == unbroken["effects"]


def test_more_seeds_can_be_added_to_a_race_that_is_done(tmp_path):
    noisy = {("all", seed): Trial(seed, "reached", 30.0 + 20 * seed, clocks={"train": 30.0}) for seed in range(5)}
    conduct(MadeUp(failing=noisy), tmp_path / "race", names=["plain", "all"])
    again = MadeUp(failing=noisy)
    record = conduct(again, tmp_path / "race", resume=True, seeds=[0, 1, 2, 3, 4], names=["plain", "all"])
    assert {seed for _, seed, *_ in again.log} == {3, 4}
    assert record["speedup"]["num_seeds"] == 5


def test_seeds_that_were_fixed_beforehand_cannot_grow(tmp_path):
    conduct(MadeUp(), tmp_path / "race", fixed_seeds=True)
    with pytest.raises(InputError, match="number of seeds was fixed at 3, not 5"):
        conduct(MadeUp(), tmp_path / "race", resume=True, seeds=[0, 1, 2, 3, 4], fixed_seeds=True)


def test_an_arm_ends_once_its_trick_is_settled_and_the_race_with_the_last_of_them():
    course = MadeUp()
    record = conduct(course, seeds=list(range(10)))
    assert {seed for _, seed, *_ in course.log} == {0, 1, 2}
    assert [run["note"] for run in record["arms"][0]["runs"][3:]] == ["settled before this seed"] * 7
    assert verdicts(record)["cyclical"] == "helps"
    assert record["headline"].endswith("3 seeds)")


def test_arms_go_on_while_their_trick_is_not_settled():
    by_seed = [
        (150.0, 25.0),
        (290.0, 36.0),
        (210.0, 31.0),
        (170.0, 37.0),
        (270.0, 26.0),
        (190.0, 30.0),
    ]
    noisy = {
        (name, seed): Trial(seed, "reached", pair[at])
        for at, name in enumerate(("plain+label_smoothing", "all-label_smoothing"))
        for seed, pair in enumerate(by_seed)
    }
    course = MadeUp(failing=noisy)
    record = conduct(course, seeds=list(range(6)))
    late = {name for name, seed, *_ in course.log if seed == 5}
    assert {"plain", "all", "plain+label_smoothing", "all-label_smoothing"} <= late
    assert verdicts(record)["label_smoothing"] == "not settled"


def test_fixed_seeds_run_to_the_end_at_five_percent():
    course = MadeUp()
    record = conduct(course, seeds=list(range(4)), fixed_seeds=True)
    assert {seed for _, seed, *_ in course.log} == {0, 1, 2, 3}
    assert record["speedup"]["confidence"] == 0.95
    assert conduct(MadeUp(), seeds=list(range(5)))["speedup"]["confidence"] == pytest.approx(0.994)  # settled at 3


def test_resuming_another_race_is_refused(tmp_path):
    conduct(MadeUp(), tmp_path / "race")
    with pytest.raises(InputError, match="another race"):
        conduct(MadeUp(target=0.8), tmp_path / "race", resume=True)
    with pytest.raises(InputError, match="other arms"):
        conduct(MadeUp(), tmp_path / "race", resume=True, names=["plain", "all"])
    with pytest.raises(InputError, match="no race to resume"):
        conduct(MadeUp(), tmp_path / "nothing", resume=True)
    (tmp_path / "race" / "race.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        conduct(MadeUp(), tmp_path / "race", resume=True)


def test_a_race_for_accuracy_plans_each_cycle_to_fit_its_time():
    course = MadeUp(target=None, seconds=60.0)
    record = conduct(course, seeds=[0, 1, 2, 3, 4])
    lengths = {name: epochs for name, _, _, epochs, _ in course.log}
    assert lengths["all"] == pytest.approx(60 * 0.97 / 6)  # 6 s an epoch with 16 bits
    assert lengths["plain+cyclical"] == pytest.approx(60 * 0.97 / 10)
    assert lengths["plain"] == 20
    assert record["speedup"]["kind"] == "points"
    assert record["speedup"]["estimate"] > 0
    assert "points more accuracy in 1 min 00 s of training" in record["sentence"]


def test_leave_one_out_and_add_one_in_cost_at_most_six_plain_runs():
    """For a set of three, with made-up times; the trials before the race are not counted."""
    course = MadeUp()
    record = conduct(course, tune=3)
    cost = sum(
        run["clocks"].get("train", 0.0)
        for arm in record["arms"]
        if arm["name"] not in ("plain", "all")
        for run in arm["runs"]
    )
    plain = sum(run["seconds"] for arm in record["arms"] if arm["name"] == "plain" for run in arm["runs"])
    assert cost <= 6 * plain


def test_the_folder_of_another_race_is_not_overwritten(tmp_path):
    conduct(MadeUp(), tmp_path / "race")
    with pytest.raises(InputError, match="already holds a run"):
        RunFolder(tmp_path / "race")


def test_a_dry_run_says_how_long_each_arm_may_take():
    made = RaceRunner(MadeUp(), make_arms(THREE), THREE, plan(), {})
    record = made.dry_run()
    assert record["expected_seconds"]["plain"] == pytest.approx(200.0)
    assert record["expected_seconds"]["all"] == pytest.approx(120.0)


def test_a_budget_that_ends_while_tuning_ends_the_race_and_more_can_be_given(tmp_path, monkeypatch):
    now = [0.0]
    run = MadeUp.run

    def ticking(self, *args, **kwargs):
        made = run(self, *args, **kwargs)
        now[0] += 60.0
        return made

    monkeypatch.setattr(MadeUp, "run", ticking)
    monkeypatch.setattr(Done, "elapsed_seconds", property(lambda _: now[0]))
    record = conduct(MadeUp(), tmp_path / "race", tune=3, budget_seconds=90.0)
    assert {run["status"] for arm in record["arms"] for run in arm["runs"]} == {"not run"}
    assert record["speedup"]["estimate"] is None
    more = conduct(MadeUp(), tmp_path / "race", resume=True, tune=3, budget_seconds=1e6)
    assert "reached" in {run["status"] for arm in more["arms"] for run in arm["runs"]}


def test_all_without_a_trick_is_not_stopped_before_it_is_slower_than_all():
    """Where all is slower than plain, plain's time says nothing about all without a trick."""
    course = MadeUp(plain=100.0)
    made = RaceRunner(course, make_arms(THREE), THREE, plan(), {})
    left_out, added = (next(arm for arm in made.arms if arm.name == name) for name in ("all-cyclical", "plain+cyclical"))
    assert made._cap(left_out, 0) == math.inf
    made.done.runs["plain", 0], made.done.runs["all", 0] = Trial(0, "reached", 20.0), Trial(0, "reached", 30.0)
    assert (made._cap(left_out, 0), made._cap(added, 0)) == (45.0, 30.0)
    made.done.runs["all", 0] = Trial(0, "reached", 10.0)
    assert made._cap(left_out, 0) == 30.0
    made.done.runs["all", 0] = Trial(0, "missed")
    assert made._cap(left_out, 0) == math.inf
    assert made._cap(made.arms[1], 0) == math.inf


def test_a_seed_in_which_plain_is_slow_has_a_later_cap():
    made = RaceRunner(MadeUp(), make_arms(THREE), THREE, plan(), {})
    added = next(arm for arm in made.arms if arm.name == "plain+cyclical")
    made.done.runs |= {("plain", seed): Trial(seed, "reached", time) for seed, time in enumerate((20.0, 22.0, 60.0))}
    assert made._cap(added, 1) == pytest.approx(33.0)
    assert made._cap(added, 2) == pytest.approx(90.0)


def test_a_model_that_gets_through_no_step_is_refused():
    class Broken(MadeUp):
        def seconds_per_epoch(self, arm, few=2, more=8):
            raise RuntimeError("shapes cannot be multiplied")

    with pytest.raises(InputError, match="no arm gets through its first steps: shapes cannot be multiplied"):
        conduct(Broken())


def test_a_race_of_another_version_is_refused_in_one_line(tmp_path):
    conduct(MadeUp(), tmp_path / "race")
    path = tmp_path / "race" / "race.json"
    content = json.loads(path.read_text())
    del content["reasons"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="written by another version"):
        conduct(MadeUp(), tmp_path / "race", resume=True)
