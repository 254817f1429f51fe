"""What a race says in words: the headline, the sentence, the paragraph, and the verdict per trick."""

import itertools
import re

import pytest

from heptane.race.findings import findings


def run(seed, seconds, status=None, best=0.91, note=""):
    status = status or ("missed" if seconds is None else "reached")
    return {"seed": seed, "status": status, "seconds": seconds, "best": best, "note": note, "why": {}, "clocks": {}}


def record(arms, target=0.91, metric="valid_accuracy", num_valid=5000, fixed=False, **rest):
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
        "plan": {"seeds": seeds, "fixed_seeds": fixed},
        "num_valid": num_valid,
        "environment": {"cores_usable": 2, "cpu": "a processor", "gpus": []},
        "model": {"name": "resnet"},
        "data": {"name": "digits"},
        "settings": {"optimizer": "sgd"},
        "arms": made,
        "reasons": {},
        **rest,
    }


def two(plain, every, **settings):
    return findings(record({"plain": ([], plain), "all": (["cyclical"], every)}, reasons={"mixup": "too short"}, **settings))


FIVE = [30.0, 33.0, 27.0, 31.0, 30.0]


@pytest.mark.parametrize(
    ("plain", "every", "headline"),
    [
        (FIVE, [10.0, 10.8, 9.1, 10.4, 9.9], "3.01x faster to 91.0% (2.96x to 3.05x, 5 seeds)"),
        ([10.0, 10.8, 9.1, 10.4, 9.9], FIVE, "3.01x slower to 91.0% (2.96x to 3.05x, 5 seeds)"),
        (FIVE, [30.2, 32.8, 27.1, 31.1, 30.1], "No difference beyond 10% to 91.0% (5 seeds)"),
        (FIVE, [20.0, 45.0, 17.0, 41.0, 30.0], "Not settled: 49% slower to 40% faster (to 91.0%, 5 seeds)"),
        ([30.0], [10.0], "No verdict: only one seed (3x faster)"),
        ([None, None, 20.0], [10.0, 12.0, 11.0], "No verdict: reached by tricks 3 of 3, plain 1 of 3"),
        ([None] * 9 + [20.0], [10.0] * 10, "With tricks 10 of 10 runs reach 91.0%, plain 1 of 10"),
        ([None, None], [None, None], "Neither plain nor the tricks reached 91.0%"),
        ([20.0], ["not run"], "No result yet: no seed has run both plain and all"),
    ],
)
def test_the_headline(plain, every, headline):
    assert two(plain, every, fixed=True)["headline"] == headline


def test_two_seeds_of_plain_and_all_bound_next_to_nothing_and_it_says_so():
    found = two([30.0, 33.0], [10.0, 12.0])
    assert found["headline"] == "Not settled: over 10x slower to over 90% faster (2 seeds)"
    assert found["speedup"]["verdict"] == "not settled"


def test_a_headline_never_has_more_than_twelve_words():
    values = [None, 5.0, 50.0, 52.0]
    kinds = [{}, {"target": 0.3, "metric": "valid_loss"}, {"target": 0.5, "metric": "valid_word_error_rate"}]
    pairs = list(itertools.product(values, repeat=2))
    for num_seeds, settings in itertools.product((1, 2, 3), kinds):
        for chosen in itertools.combinations_with_replacement(pairs, num_seeds):
            plain, every = map(list, zip(*chosen, strict=True))
            said = two(plain, every, **settings)["headline"]
            assert len(said.split()) <= 12, said


def test_words_never_contradict_the_interval():
    """Faster only with an interval above 1, and never beside "no difference"."""
    for jitter in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
        every = [20.0, 20.0 + jitter, 20.0 - jitter, 20.0 + jitter / 2, 20.0]
        found = two(FIVE, every)["speedup"]
        low, high = found["interval"]
        assert ("faster" in two(FIVE, every)["sentence"].split(" (")[0].split("slower to")[0]) == (
            low > 1
        ) or low <= 1 <= high
        assert (found["verdict"] == "helps") <= (low > 1)
        assert (found["verdict"] == "not settled") <= (low <= 1 <= high or found["p"] > 1 - found["confidence"])


def test_a_race_for_accuracy_speaks_of_points():
    found = two([0.90, 0.905, 0.91, 0.9], [0.92, 0.926, 0.93, 0.921], target=None, fixed=True)
    assert found["headline"].startswith("2.1 points more accuracy in 1 min 00 s of training")
    assert found["speedup"]["kind"] == "points"


def test_a_loss_is_named():
    found = two(FIVE, [10.0, 10.8, 9.1, 10.4, 9.9], target=0.3, metric="valid_loss")
    assert "to a validation loss of 0.3 on this machine" in found["sentence"]


def test_too_few_validation_samples_carry_no_verdict_and_it_says_why():
    arms = {"plain": ([], FIVE), "all": (["cyclical"], [t / 3 for t in FIVE])}
    found = findings(record(arms, num_valid=100))
    assert found["speedup"]["verdict"] == found["effects"][0]["verdict"] == "no verdict"
    assert found["headline"] == "No verdict: too few validation samples for this target"
    assert "at 91.0% only about 9 of 100 validation samples are wrong, and a verdict needs 20" in found["sentence"]
    assert findings(record(arms, num_valid=1000))["speedup"]["verdict"] == "helps"


def test_the_paragraph_can_be_pasted():
    arms = {
        "plain": ([], [60.0, 62.0, 58.0]),
        "all": (["cyclical", "mixup"], [20.0, 21.0, 19.0]),
        "all-cyclical": (["mixup"], [60.0, 63.0, 58.0]),
        "all-mixup": (["cyclical"], [17.0, 17.5, 16.0]),
    }
    tuning = {
        "plain": {"knob": "rate", "num_runs": 3, "seconds": 180.0},
        "all": {"knob": "epochs", "num_runs": 4, "seconds": 60.0},
    }
    text = findings(record(arms, tuning=tuning))["summary"]
    assert text.startswith("resnet on digits (2 cores of a processor): 3x faster to 91.0% on this machine")
    assert "Training took 20 s with the tricks and 1 min 00 s without." in text
    assert re.search(r"Cyclical saves \d\d% \(", text)
    assert "not settled:" not in text or "mixup" in text
    assert "the learning rate of plain in 3 runs (3 min 00 s) and the epochs of all in 4 runs (1 min 00 s)" in text
    assert "Plain is sgd in float32" in text


def test_a_median_time_that_missed_is_not_quoted():
    assert "Training took" not in two([20.0, 20.0, 20.0], [None, None, 9.0])["summary"]


def test_only_what_was_measured_is_in_the_table_and_the_rest_is_named_with_its_reason():
    found = two([30.0, 33.0, 27.0], [10.0, 11.0, 9.0])
    assert [effect["trick"] for effect in found["effects"]] == ["cyclical"]
    left_out = {row["trick"]: row["why"] for row in found["not_raced"]}
    assert len(left_out) == 6
    assert left_out["mixup"] == "too short"
    assert left_out["transfer"] == "not in the raced set"
    cyclical = found["effects"][0]  # the only trick: plain with it is all, and all without it is plain
    assert cyclical["verdict"] == "helps"
    assert cyclical["alone"]["estimate"] == pytest.approx(3.0)
    assert cyclical["without"] is None  # the same pair of arms, counted once


def test_an_arm_that_was_never_run_leaves_the_other_side():
    arms = {
        "plain": ([], [60.0, 62.0, 58.0]),
        "all": (["cyclical", "mixup"], [20.0, 21.0, 19.0]),
        "all-cyclical": (["mixup"], ["not run"] * 3),
        "all-mixup": (["cyclical"], [10.0, 10.5, 9.5]),
    }
    effects = {effect["trick"]: effect for effect in findings(record(arms))["effects"]}
    assert effects["mixup"]["alone"] is None
    assert effects["mixup"]["verdict"] == "hurts"


def test_opposite_effects_alone_and_among_the_others_are_remarked():
    arms = {
        "plain": ([], [100.0, 101.0, 102.0, 100.0]),
        "all": (["cyclical", "mixup", "label_smoothing"], [50.0, 50.5, 51.0, 50.0]),
        "all-mixup": (["cyclical", "label_smoothing"], [40.0, 40.5, 41.0, 40.0]),
        "plain+mixup": (["mixup"], [50.0, 51.0, 51.0, 50.5]),
    }
    effects = {effect["trick"]: effect for effect in findings(record(arms))["effects"]}
    assert "helps alone, hurts among the other tricks" in effects["mixup"]["why"]
