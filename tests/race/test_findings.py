"""What a race says in words: the sentence at the end, the paragraph, and the verdict per trick."""

import pytest

from heptane.race.findings import findings


def run(seed, seconds, status=None, best=0.91, note=""):
    status = status or ("missed" if seconds is None else "reached")
    return {"seed": seed, "status": status, "seconds": seconds, "best": best, "note": note, "why": {}, "clocks": {}}


def record(arms, target=0.91, metric="valid_accuracy", budget=None, **rest):
    """A race's record; ``arms`` maps a name to its tricks and its seconds (or, for a race for accuracy, its values)."""
    timed = target is not None
    made = [
        {
            "name": name,
            "tricks": {trick: {} for trick in tricks},
            "runs": [
                run(seed, value) if timed else run(seed, None, "done", best=value)
                for seed, value in enumerate(values)
                if value != "not run"
            ],
        }
        for name, (tricks, values) in arms.items()
    ]
    seeds = list(range(max(len(values) for _, values in arms.values())))
    return {
        "target": {"metric": metric, "value": target, "seconds": None if timed else 60.0},
        "plan": {"seeds": seeds},
        "environment": {"cores_usable": 2, "cpu": "a processor", "gpus": []},
        "model": {"name": "resnet"},
        "data": {"name": "digits"},
        "settings": {"optimizer": "sgd"},
        "arms": made,
        **rest,
    }


def two(plain, every, **settings):
    return findings(record({"plain": ([], plain), "all": (["cyclical"], every)}, **settings), {"mixup": "too short"})


@pytest.mark.parametrize(
    ("plain", "every", "sentence"),
    [
        ([30.0, 33.0, 27.0], [10.0, 11.0, 9.0], "3 times faster to 91.0% on this machine (95% interval 3 to 3, 3 seeds"),
        (
            [10.0, 11.0],
            [30.0, 33.0],
            "3 times slower to 91.0% on this machine (95% interval 3 to 3, 2 seeds: a weak",
        ),
        ([30.0], [10.0], "3 times faster to 91.0% on this machine (1 seed: no interval)"),
        (
            [None, None, 20.0],
            [10.0, 12.0, 11.0],
            "With the tricks it reached 91.0% in 11 s in 3 of 3 seeds; plain did not, in 2 of 3 seeds.",
        ),
        (
            [20.0, 20.0, 20.0],
            [None, None, 9.0],
            "Plain reached 91.0% in 3 of 3 seeds; with the tricks it did not, in 2 of 3 seeds.",
        ),
        ([None, None], [None, None], "Neither plain nor all reached 91.0%."),
        ([20.0], ["not run"], "No seed has both plain and all to 91.0% yet."),
    ],
)
def test_the_sentence(plain, every, sentence):
    assert two(plain, every)["sentence"].startswith(sentence)


def test_five_seeds_are_not_called_weak():
    sentence = two([30.0, 33.0, 27.0, 31.0, 30.0], [10.0, 10.5, 9.0, 10.0, 11.0])["sentence"]
    assert "5 seeds)" in sentence
    assert "weak" not in sentence


def test_a_race_for_accuracy_speaks_of_points():
    found = two([0.90, 0.905, 0.91], [0.92, 0.924, 0.93], target=None)
    assert found["sentence"].startswith("2.00 points more accuracy in 1 min 00 s of training (95% interval ")
    assert found["speedup"]["kind"] == "points"


def test_a_loss_is_named():
    assert "to a validation loss of 0.3 on this machine" in two([3.0], [1.0], target=0.3, metric="valid_loss")["sentence"]


def test_the_paragraph_can_be_pasted():
    arms = {
        "plain": ([], [60.0, 62.0, 58.0]),
        "all": (["cyclical", "mixup"], [20.0, 21.0, 19.0]),
        "all-cyclical": (["mixup"], [60.0, 63.0, 58.0]),
        "all-mixup": (["cyclical"], [18.0, 18.5, 17.0]),
    }
    tuning = {
        "plain": {"knob": "rate", "num_runs": 3, "seconds": 180.0},
        "all": {"knob": "epochs", "num_runs": 4, "seconds": 60.0},
    }
    text = findings(record(arms, tuning=tuning), {})["summary"]
    assert text.startswith("resnet on digits (2 cores of a processor): 3 times faster to 91.0% on this machine")
    assert "Training took 20 s with the tricks and 1 min 00 s without." in text
    assert "Cyclical (3" in text
    assert "helped" in text
    assert "mixup" in text
    assert "the rate of plain in 3 runs (3 min 00 s) and the epochs with the tricks in 4 runs (1 min 00 s)" in text
    assert "Plain is sgd in 32 bits" in text


def test_a_median_time_that_missed_is_not_quoted():
    assert "Training took" not in two([20.0, 20.0, 20.0], [None, None, 9.0])["summary"]


def test_every_trick_has_a_verdict_and_those_that_did_not_race_a_reason():
    effects = {effect["trick"]: effect for effect in two([30.0, 33.0, 27.0], [10.0, 11.0, 9.0])["effects"]}
    assert len(effects) == 7
    assert effects["mixup"]["verdict"] == "not applicable here"
    assert effects["mixup"]["why"] == "too short"
    assert effects["transfer"]["why"] == "not in the set that was raced"
    cyclical = effects["cyclical"]  # the only trick: plain with it is all, and all without it is plain
    assert cyclical["verdict"] == "helps"
    assert cyclical["alone"]["median"] == cyclical["without"]["median"] == pytest.approx(3.0)


def test_an_arm_that_was_never_run_leaves_the_other_side():
    arms = {
        "plain": ([], [60.0, 62.0, 58.0]),
        "all": (["cyclical", "mixup"], [20.0, 21.0, 19.0]),
        "all-cyclical": (["mixup"], ["not run"] * 3),
        "all-mixup": (["cyclical"], [10.0, 10.5, 9.5]),
    }
    effects = {effect["trick"]: effect for effect in findings(record(arms), {})["effects"]}
    assert effects["mixup"]["alone"] is None
    assert effects["mixup"]["verdict"] == "hurts"
