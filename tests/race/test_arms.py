"""Which arms race."""

import pytest

from heptane import Cyclical, InputError, LabelSmoothing, MixedPrecision, Tricks
from heptane.race.arms import Arm, make_arms

THREE = Tricks(cyclical=Cyclical(), label_smoothing=LabelSmoothing(), mixed_precision=MixedPrecision())


def test_plain_all_each_left_out_and_each_added():
    arms = {arm.name: arm.tricks.on for arm in make_arms(THREE)}
    assert arms == {
        "plain": [],
        "all": ["cyclical", "label_smoothing", "mixed_precision"],
        "all-cyclical": ["label_smoothing", "mixed_precision"],
        "all-label_smoothing": ["cyclical", "mixed_precision"],
        "all-mixed_precision": ["cyclical", "label_smoothing"],
        "plain+cyclical": ["cyclical"],
        "plain+label_smoothing": ["label_smoothing"],
        "plain+mixed_precision": ["mixed_precision"],
    }


def test_arms_that_are_the_same_run_once():
    two = Tricks(cyclical=Cyclical(), label_smoothing=LabelSmoothing())
    assert [arm.name for arm in make_arms(two)] == ["plain", "all", "all-cyclical", "all-label_smoothing"]
    assert [arm.name for arm in make_arms(Tricks(cyclical=Cyclical()))] == ["plain", "all"]


@pytest.mark.parametrize("name", ["all-label-smoothing", "all-label_smoothing"])
def test_named_arms_in_the_order_of_a_race(name):
    assert [arm.name for arm in make_arms(THREE, [name, "all", "plain"])] == ["plain", "all", "all-label_smoothing"]


def test_a_name_stands_for_the_arm_that_runs_the_same_tricks():
    two = Tricks(cyclical=Cyclical(), label_smoothing=LabelSmoothing())
    assert [arm.name for arm in make_arms(two, ["plain+cyclical"])] == ["all-label_smoothing"]


@pytest.mark.parametrize(
    ("name", "hint"), [("al", "all"), ("all-cyclicl", "all-cyclical"), ("plain+mixup", "expected plain"), ("", "expected")]
)
def test_a_name_that_is_not_known_is_refused_with_the_nearest(name, hint):
    with pytest.raises(InputError, match="is not known") as refused:
        make_arms(THREE, [name])
    assert hint in str(refused.value)


def test_a_race_needs_a_trick():
    with pytest.raises(InputError, match="at least one trick"):
        make_arms(Tricks())


def test_titles_are_words():
    titles = {arm.name: (arm.title, arm.trick, arm.adds) for arm in make_arms(THREE)}
    assert titles["plain"] == ("plain", None, False)
    assert titles["all-label_smoothing"] == ("all without label smoothing", "label_smoothing", False)
    assert titles["plain+cyclical"] == ("plain with cyclical", "cyclical", True)
    assert Arm("all", THREE).trick is None
