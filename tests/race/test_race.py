"""``hp.race`` and ``heptane race`` on real models and data."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
import torch
from tests.helpers import sgd

import heptane as hp
from heptane.cli import main
from heptane.core.fit_options import Plan
from heptane.race.arms import Arm
from heptane.race.attempt import RaceSpec

TWO = hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=hp.LabelSmoothing())
DIGITS = ["--data", "digits", "--model", "mlp", "--batch-size", "64", "--optimizer", "sgd", "--lr", "0.02"]
CYCLE = ["--tricks", "cyclical", "--arms", "plain,all"]


def blobs(count=512):
    """Two classes that a line separates, but for some."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return x, (x[:, 0] + 0.3 * torch.randn(count, generator=generator) > 0).long()


def linear():
    return torch.nn.Linear(6, 2)


def race(**changed):
    settings = {"optimizer": sgd, "epochs": 6, "batch_size": 32, "target": 0.8, "tricks": TWO, "seeds": 2, "tune": 0}
    return hp.race(changed.pop("model", linear), blobs(), blobs(), **{**settings, **changed})


def test_the_record_is_what_the_interface_says(tmp_path):
    result = race(out=tmp_path / "race", test=blobs(), tune=2)
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    assert record == json.loads(json.dumps(result.record))
    assert [arm["name"] for arm in record["arms"]] == ["plain", "all", "all-cyclical", "all-label_smoothing"]
    for arm in record["arms"]:
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
        for run in arm["runs"]:
            assert run["seconds"] is None or run["seconds"] > 0
            assert set(run["clocks"]) == {"wall", "train", "cpu", "evaluate"}
            assert {"valid_accuracy", "test_accuracy"} <= set(run["metrics"])
    assert set(record["speedup"]) >= {"estimate", "interval", "verdict", "words", "p", "values"}
    assert [effect["trick"] for effect in record["effects"]] == ["cyclical", "label_smoothing"]
    assert {row["trick"] for row in record["not_raced"]} == set(hp.tricks.KINDS) - {"cyclical", "label_smoothing"}
    assert {"threads", "governor", "load_average", "torch", "git_commit"} <= set(record["environment"])
    assert result.summary == record["summary"]
    assert result.effects == record["effects"]
    assert result.headline == record["headline"]


def test_seeds_are_paired_and_every_arm_starts_from_the_same_weights():
    made = []

    def model():
        net = linear()
        made.append(net.weight.detach().clone())
        return net

    race(model=model, epochs=1, seeds=2, seed=5)
    racing = made[-8:]  # before them, the short runs that warm up
    assert all(torch.equal(racing[0], weight) for weight in racing[:4])
    assert all(torch.equal(racing[4], weight) for weight in racing[4:])
    assert not torch.equal(racing[0], racing[4])


def test_plain_is_plain_pytorch():
    """The plain arm ends with the weights of a fit without tricks, bit for bit."""
    kept = []

    def model():
        kept.append(linear())
        return kept[-1]

    race(model=model, target=1.0, arms=["plain"], seeds=1, epochs=2)
    torch.manual_seed(0)
    net = linear()
    hp.fit(net, blobs(), optimizer=sgd, epochs=2, batch_size=32, seed=0)
    assert torch.equal(kept[-1].weight, net.weight)


def test_a_target_out_of_reach_is_infinite_for_all():
    result = race(target=("valid_loss", 1e-9), arms=["plain", "all"])
    assert result.speedup["estimate"] is None
    assert all(run["status"] == "missed" for arm in result.record["arms"] for run in arm["runs"])
    assert result.record["sentence"].startswith("Neither")


def test_a_loss_as_target_is_reached_from_above():
    result = race(target=("valid_loss", 0.6), arms=["plain", "all"])
    assert all(run["status"] == "reached" for run in result.record["arms"][0]["runs"])
    assert "validation loss of 0.6" in result.record["sentence"]


def test_an_arm_that_raises_does_not_lose_the_others():
    class Fragile(torch.nn.Linear):
        """Fails in 16 bits, but not at once: what fails at once is refused before the race."""

        steps = 0

        def forward(self, x):
            if torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
                self.steps += 1
                if self.steps > 10:
                    raise RuntimeError("no 16 bits, please")
            return super().forward(x)

    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16"), cyclical=hp.Cyclical())
    result = race(model=lambda: Fragile(6, 2), tricks=tricks, seeds=2, target=0.6)
    runs = {arm["name"]: {run["status"] for run in arm["runs"]} for arm in result.record["arms"]}
    assert runs == {
        "plain": {"reached"},
        "all": {"failed"},
        "all-cyclical": {"failed"},
        "all-mixed_precision": {"reached"},
    }
    assert "no 16 bits, please" in result.record["arms"][1]["runs"][0]["note"]
    assert result.record["headline"] == "No verdict: reached by tricks 0 of 2, plain 2 of 2"


def test_a_race_for_accuracy_gives_every_arm_its_time():
    result = race(target=None, accuracy_in=0.3, epochs=500, arms=["plain", "all"])
    for arm in result.record["arms"]:
        for run in arm["runs"]:
            assert run["status"] == "done"
            assert run["clocks"]["train"] < 1.5
    assert result.speedup["kind"] == "points"


def test_fit_stops_after_its_seconds_with_an_evaluation():
    result = hp.fit(linear(), blobs(), blobs(), optimizer=sgd, epochs=100_000, batch_size=32, max_seconds=0.2)
    assert 0.2 <= result.seconds["train"] < 2
    assert result.steps["applied"] < result.steps["planned"]
    assert "valid_accuracy" in result.metrics


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": None}, "a target, such as"),
        ({"accuracy_in": 3.0}, "a target, such as"),
        ({"seeds": 0}, "seeds"),
        ({"tune": -1}, "tune"),
        ({"budget": 0.0}, "budget"),
        ({"peak": 0.0}, "peak"),
        ({"arms": ["plan"]}, "did you mean plain"),
        ({"tricks": hp.Tricks()}, "at least one trick"),
        ({"target": 1.5}, "target"),
        ({"target": ("valid_f1", 0.5)}, "valid_f1"),
        ({"tricks": hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp16"))}, "fp16"),
        ({"model": lambda: 3}, "int"),
        ({"arms": "plain,all"}, "a list of names"),
        ({"tricks": "mixup"}, "Tricks"),
        ({"loss": "mse"}, "mse compares element by element"),
    ],
)
def test_wrong_input_is_refused_before_any_training(changed, message, tmp_path):
    with pytest.raises(hp.InputError, match=re.escape(message)):
        race(out=tmp_path / "race", **changed)
    assert not (tmp_path / "race").exists()


def test_a_model_that_is_the_same_object_each_time_is_refused():
    net = linear()
    with pytest.raises(hp.InputError, match="a new model each time"):
        race(model=lambda: net)


def test_a_race_needs_validation_data():
    with pytest.raises(hp.InputError, match="valid=None"):
        hp.race(linear, blobs(), None, optimizer=sgd, epochs=1, batch_size=32, target=0.9)


def test_under_torchrun_it_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(hp.InputError, match="without torchrun"):
        race()


@pytest.mark.usefixtures("forked")
def test_workers_race_too():
    result = race(tricks=hp.Tricks(data_parallel=hp.DataParallel(workers=2)), seeds=1, epochs=1, target=0.5)
    assert {run["status"] for arm in result.record["arms"] for run in arm["runs"]} == {"reached"}


def test_the_margin_of_a_tuned_length_is_the_standard_error_of_the_target():
    course = RaceSpec(
        model=linear,
        train=blobs(),
        valid=blobs(400),
        test=None,
        metrics=None,
        plan=Plan(optimizer=sgd, epochs=1, batch_size=32),
        metric="valid_accuracy",
        target=0.9,
        seconds=None,
    )
    assert course.margin == pytest.approx(0.015)
    before, per_epoch = course.seconds_per_epoch(Arm("plain", hp.Tricks()))
    assert before >= 0
    assert 0 < per_epoch < 5


# The command -------------------------------------------------------------------------------------------------------------


def test_the_command_races_and_ends_in_the_sentence(tmp_path, capsys):
    out = tmp_path / "race"
    flags = [
        "--target",
        "0.85",
        "--epochs",
        "8",
        "--seeds",
        "2",
        "--arms",
        "plain,all",
        "--tricks",
        "cyclical,label_smoothing",
    ]
    assert main(["race", *DIGITS, *flags, "--out", str(out)]) == 0
    printed = capsys.readouterr()
    record = json.loads((out / "race.json").read_text())
    assert printed.out.rstrip().endswith(record["headline"])
    assert "85.0%" in record["sentence"]
    assert "Not raced: data parallel, " in printed.out
    assert "plain, seed 0: " in printed.err
    assert record["status"] == "done"
    assert {path.name for path in out.iterdir()} == {"race.json", "report.html", "settings.toml"}
    settings = tomllib.loads((out / "settings.toml").read_text())
    assert settings["race"]["arms"] == "plain,all"
    assert main(["race", *DIGITS, *flags, "--out", str(out)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    before = record["arms"]
    assert main(["race", "--resume", str(out)]) == 0
    assert json.loads((out / "race.json").read_text())["arms"] == before


def test_a_dry_run_prints_the_arms_and_the_time(tmp_path, capsys):
    out = tmp_path / "race"
    tricks = ["--tricks", "cyclical,mixup,label_smoothing"]
    assert main(["race", *DIGITS, *tricks, "--target", "0.9", "--dry-run", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for arm in ("plain", "all", "all without cyclical", "plain with label smoothing", "at most"):
        assert arm in printed
    assert not out.exists()


@pytest.mark.parametrize(
    ("target", "wrong", "enough"),
    [("0.95", "18 of 359", "400 of them"), ("0.99", "4 of 359", "2,000 of them"), ("1.0", "0 of 359", "none")],
)
def test_a_race_that_cannot_end_in_a_verdict_says_so_first(target, wrong, enough, capsys):
    assert main(["race", *DIGITS, *CYCLE, "--target", target, "--dry-run"]) == 0
    printed = capsys.readouterr().err
    assert (
        f"note: no verdict will be possible: at {100 * float(target):.1f}% only about {wrong} validation samples " in printed
    )
    assert f"{enough}" in printed
    assert "--valid-fraction" in printed


def test_a_race_that_can_end_in_a_verdict_does_not_warn_and_says_what_a_budget_leaves_out(capsys):
    assert main(["race", *DIGITS, "--target", "0.8", "--dry-run", *CYCLE, "--budget", "1s"]) == 0
    printed = capsys.readouterr()
    assert "verdict" not in printed.err
    assert "The budget of 1.0 s is less" in printed.out
    assert "--budget" not in next(line for line in printed.out.splitlines() if line.startswith("time"))
    assert main(["race", *DIGITS, "--target", "0.8", "--dry-run", *CYCLE, "--budget", "2h"]) == 0
    assert "is less" not in capsys.readouterr().out


def test_a_target_that_all_misses_is_exit_code_3(tmp_path):
    flags = ["--target", "1.0", "--epochs", "0.5", "--seeds", "1", "--arms", "plain,all", "--tune", "0"]
    assert main(["race", *DIGITS, *flags, "--out", str(tmp_path / "race")]) == 3


def test_the_command_races_for_accuracy(tmp_path, capsys):
    flags = ["--accuracy", "0.3s", "--seeds", "1", *CYCLE, "--tune", "0", "--epochs", "50"]
    assert main(["race", *DIGITS, *flags, "--out", str(tmp_path / "race")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "in 0.30 s of training" in out
    assert re.search(r"No verdict: only one seed \(.* points (more|less) accuracy\)", out)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--target"),
        (["--target", "0.9", "--accuracy", "3s"], "two races"),
        (["--target", "0.9", "--budget", "soon"], "90s, 20m or 1.5h"),
        (["--target", "0.9", "--arms", "plan"], "did you mean plain"),
        (["--target", "0.9", "--tricks", "none"], "at least one trick"),
        (["--target", "0.9", "--sedes", "3"], "did you mean --seeds"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_code_2(flags, message, tmp_path, capsys):
    assert main(["race", *DIGITS, *flags, "--out", str(tmp_path / "race")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert [line.startswith(("heptane: ", "note: ")) for line in error.splitlines()].count(False) == 0
    assert error.count("heptane: ") == 1


def test_a_regression_has_no_accuracy_to_reach():
    x = torch.randn(64, 6)
    settings = {"optimizer": sgd, "epochs": 2, "batch_size": 32, "target": 0.5, "tricks": hp.Tricks(mixup=hp.Mixup())}
    with pytest.raises(hp.InputError, match="valid_accuracy"):
        hp.race(lambda: torch.nn.Linear(6, 1), (x, x[:, :1]), (x, x[:, :1]), **settings)


def test_a_model_in_place_of_a_function_is_refused_with_the_remedy():
    with pytest.raises(hp.InputError, match="a function that makes a new model"):
        race(model=linear())


def test_more_seeds_can_be_given_to_a_race_that_is_done(tmp_path, capsys):
    out = str(tmp_path / "race")
    flags = ["--target", "0.5", "--epochs", "2", "--seeds", "1", *CYCLE, "--tune", "0"]
    assert main(["race", *DIGITS, *flags, "--out", out]) in (0, 3)
    assert main(["race", "--resume", out, "--seeds", "2"]) in (0, 3)
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    assert [run["seed"] for run in record["arms"][0]["runs"]] == [0, 1]
    assert main(["race", "--resume", out, "--tune", "2"]) == 2
    assert main(["evaluate", "--run", out]) == 2
    assert "holds a race" in capsys.readouterr().err
