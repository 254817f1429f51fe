"""Defaults from facts about data and machine; what the user sets is kept."""

from __future__ import annotations

from typing import Any

import pytest

from heptane.data.images.survey import Survey
from heptane.pretrained.hubs.cached import Pretrained
from heptane.recommend import Choices, DataFacts, Machine, after_loading, before_loading, expected_seconds

LAPTOP = Machine(cores=2, gflops=110.0)
LITE = Pretrained("efficientnet-lite0", "efficientnet-lite0", "has ImageNet weights")


def look(num: int = 240, side: int = 80, **facts: Any) -> Survey:
    given = {
        "classes": ("cat", "dog", "cow", "hen", "pig"),
        "is_writing": False,
        **facts,
    }
    counts = tuple([num // 4] * 5)
    return Survey(counts=counts, num_train=num, height=side, width=side, **given)


def choose(
    seen: Survey | None,
    *,
    num: int = 240,
    pretrained: Any = None,
    machine: Machine = LAPTOP,
    shape: Any = None,
    **given: Any,
) -> Choices:
    num = seen.num_train if seen else num
    before = DataFacts(kind="images" if seen else "table", num_train=num, num_classes=5, survey=seen, shape=shape or (30,))
    made = before_loading(before, machine, given, pretrained)
    if seen:
        size = made["image_size"]
        before = DataFacts(kind="images", num_train=num, num_classes=5, survey=seen, shape=(3, size, size))
    return after_loading(before, machine, given, made)


@pytest.mark.parametrize(("num", "batch"), [(1, 1), (5, 5), (40, 8), (240, 16), (600, 32), (3000, 64), (55_000, 128)])
def test_the_batch_grows_with_the_data_and_is_never_above_it(num: int, batch: int) -> None:
    assert choose(None, num=num)["batch_size"] == batch


@pytest.mark.parametrize("num", [10, 40, 240, 600, 3000])
@pytest.mark.parametrize("pretrained", [None, LITE])
def test_little_data_has_some_hundred_steps(num: int, pretrained: Any) -> None:
    made = choose(look(num), pretrained=pretrained)
    steps = -(-num // made["batch_size"]) * made["epochs"]
    assert (100 if made["frozen_groups"] else 250) <= steps <= 2500  # the last block learns more in each than a head


def test_the_last_block_trains_with_the_head_where_there_are_pictures_and_time_for_it() -> None:
    made = choose(look(600), pretrained=LITE)
    assert (made["frozen_groups"], made["batch_size"]) == (16, 32)
    assert "last block" in made.made["epochs"].why
    assert (
        expected_seconds(
            DataFacts(kind="images", num_train=600, num_classes=5, survey=look(600), shape=(3, 192, 192)), LAPTOP, made
        )
        < 60
    )
    for seen, given in ((look(240), {}), (look(600), {"computed_once": False}), (look(600), {"frozen_given": True})):
        assert choose(seen, pretrained=LITE, **given)["frozen_groups"] == 0
    slow = Machine(gflops=110.0, seconds=2.0)
    assert choose(look(600), pretrained=LITE, machine=slow)["frozen_groups"] == 0
    other = Pretrained("timm:resnet18", "timm:resnet18", "has ImageNet weights")
    assert choose(look(600), pretrained=other)["frozen_groups"] == 0


def test_more_data_means_fewer_epochs_and_more_steps() -> None:
    made = [choose(look(num, 32)) for num in (100, 240, 600, 2400, 10_000, 50_000)]
    epochs = [choices["epochs"] for choices in made]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[0] >= 60
    assert epochs[-1] <= 10


def test_the_learning_rate_follows_the_batch() -> None:
    rates = {batch: choose(look(), batch_size=batch, optimizer="sgd")["lr"] for batch in (16, 32, 128)}
    assert rates == {16: 0.0375, 32: 0.075, 128: 0.3}
    roots = {batch: choose(None, batch_size=batch)["lr"] for batch in (8, 32, 128)}
    assert roots == {8: 0.0015, 32: 0.003, 128: 0.006}


def test_images_keep_their_detail_within_what_the_machine_can_train() -> None:
    assert [choose(look(side=side))["image_size"] for side in (20, 32, 70)] == [24, 32, 40]
    assert choose(look(side=70), machine=Machine(gflops=5000.0))["image_size"] == 80
    assert choose(look(side=600), machine=Machine(gflops=5000.0))["image_size"] == 96
    sides = [choose(look(num, 400))["image_size"] for num in (100, 1000, 10_000)]
    assert sides == sorted(sides, reverse=True)
    assert choose(look(side=600), pretrained=LITE)["image_size"] >= 160
    assert choose(look(side=600), pretrained=LITE, machine=Machine(gflops=5000.0))["image_size"] == 224


def test_pretrained_weights_are_the_default_for_up_to_thousands_of_images() -> None:
    made = choose(look(3000), pretrained=LITE)
    assert (made["model"], made["start"], made["optimizer"]) == ("efficientnet-lite0", "efficientnet-lite0", "adamw")
    many = choose(look(200_000), pretrained=LITE)
    assert (many["model"], many["start"]) == ("resnet", None)
    assert "5 min" in many.made["model"].why
    without = choose(look(), pretrained="no pretrained weights here; get them")
    assert (without["model"], without["start"], without.made["model"].why[:21]) == ("resnet", None, "no pretrained weights")


def test_what_the_user_gave_stands() -> None:
    given = {
        "model": "mlp",
        "image_size": 17,
        "batch_size": 500,
        "epochs": 3.0,
        "optimizer": "adam",
        "lr": 0.5,
        "augment": "flip",
    }
    made = choose(look(), pretrained=LITE, **given)
    assert {name: made[name] for name in given} == given
    assert {made.made[name].why for name in given} == {"given"}
    assert made["start"] is None


@pytest.mark.parametrize(
    ("facts", "augment"),
    [
        ({}, "warp-flip"),
        ({"is_writing": True}, "warp"),
        ({"sided": ("turn left",)}, "warp"),
    ],
)
def test_pictures_are_mirrored_and_letters_are_not(facts: dict[str, Any], augment: str) -> None:
    assert choose(look(**facts))["augment"] == augment


def test_data_that_come_as_they_are_are_not_augmented() -> None:
    images = DataFacts(kind="images", num_train=500, num_classes=10, shape=(1, 28, 28))
    made = after_loading(images, LAPTOP, {}, before_loading(images, LAPTOP, {}))
    assert (made["model"], made["augment"]) == ("resnet", "none")
    table = choose(None)
    assert (table["model"], table["augment"], table["optimizer"]) == ("tabular", "none", "adamw")


def test_a_budget_buys_more_epochs_and_never_more_than_it_holds() -> None:
    usual = choose(look(600, 64))
    epochs = [choose(look(600, 64), machine=Machine(seconds=seconds))["epochs"] for seconds in (2.0, 20.0, 100.0, 1e4)]
    assert epochs == sorted(epochs)
    assert epochs[0] < 10
    assert epochs[-1] > usual["epochs"]


def test_the_choices_do_not_depend_on_how_busy_the_machine_is() -> None:
    assert Machine.here("cpu") == Machine.here("cpu")


@pytest.mark.parametrize(
    ("facts", "scratch"),
    [
        ({"is_writing": True}, True),
        ({"classes": tuple("ABCDE"), "is_writing": True}, True),
        ({}, False),
    ],
)
def test_letters_are_learned_from_scratch_and_pictures_are_not(facts: dict[str, Any], scratch: bool) -> None:
    made = choose(look(**facts), pretrained=LITE)
    assert (made["start"] is None) is scratch
