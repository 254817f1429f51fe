"""Transfer: new heads, learning rates by depth, freezing, and unfreezing as a function of the step."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from functools import partial
from math import floor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.helpers import Pair, make_images, sgd
from torch import nn

import heptane as hp
from heptane import InputError, Transfer, freeze, param_groups, swap_head, train_mode
from heptane.distributed.batchnorm import convert_batchnorm
from heptane.pretrained.freezing import layer_groups
from heptane.pretrained.models import resnet


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.classifier = nn.Linear(8, 4)


def prepare(transfer: Transfer, model: nn.Module, num_classes: int | None, seed: int | None = None) -> list[str]:
    """Load the weights, replace the head and freeze, as assemble does."""
    groups = partial(hp.anatomy, model, groups=transfer.groups)
    notes = transfer.load(model) + transfer.fit_head(model, num_classes, seed, groups())
    return notes + transfer.apply_freezing(model, groups(), seed)


def convnet(num_classes: int = 4, affine: bool = True) -> nn.Sequential:
    """Three groups: convolution 0 with BatchNorm 1, convolution 3 with BatchNorm 4, head 8."""
    torch.manual_seed(1)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4, affine=affine), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, affine=affine), nn.ReLU()),
        *(nn.Flatten(), nn.Dropout(0.1), nn.Linear(4, num_classes)),
    )


@pytest.fixture
def images() -> Pair:
    """96 images of 4 classes."""
    return make_images(96)


def trainable(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def plain_sgd(params: Any) -> torch.optim.SGD:
    return torch.optim.SGD(params, lr=0.1)


# the head


def test_a_swapped_head_is_fresh_and_keeps_the_olds_input_bias_dtype_and_mode() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1000, bias=False)).double().eval()
    old, body = model[1], model[0].weight
    assert swap_head(model, 7) == "1"
    assert model[1] is not old
    assert (model[1].in_features, model[1].out_features, model[1].bias) == (3, 7, None)
    assert model[1].weight.dtype == torch.float64
    assert not model[1].training
    assert model[0].weight is body


def test_a_head_of_the_right_size_is_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    old = model[1]
    swap_head(model, 5)
    assert model[1] is old


def test_a_frozen_head_is_replaced_by_one_that_trains() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5)).requires_grad_(False)
    swap_head(model, 2)
    assert trainable(model) == ["1.weight", "1.bias"]


def test_a_convolution_as_head_keeps_its_stride_and_padding() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 1000, 1, stride=2, padding=1))
    shape = model(torch.zeros(2, 1, 9, 9)).shape
    assert swap_head(model, 5) == "1"
    assert model(torch.zeros(2, 1, 9, 9)).shape == (2, 5, *shape[2:])


def test_a_head_deep_inside_or_under_two_names_is_replaced_everywhere() -> None:
    model = nn.ModuleDict({"body": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Sequential(nn.Linear(4, 9))})})
    model["again"] = model["a"]["b"][0]
    assert swap_head(model, 3) == "a.b.0"
    assert model["again"] is model["a"]["b"][0]
    assert model["again"].out_features == 3


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.LSTM(3, 2), r"LSTM does not end in a Linear or a 1x1 Conv2d .*; set swap_head=False"),
        (nn.Linear(3, 2), r"the model is a single Linear, which cannot be replaced; build it with 5 outputs"),
        (nn.Sequential(nn.LazyLinear(2)), r"0 is lazy and not initialized; run one batch"),
    ],
)
def test_a_head_that_cannot_be_swapped_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        swap_head(model, 5)


@pytest.mark.parametrize("bad", [0, -1, 2.0, True])
def test_a_number_of_classes_out_of_range_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="num_classes="):
        swap_head(convnet(), bad)


# rates per depth


def test_rates_on_the_built_in_resnet_fall_by_the_papers_factor() -> None:
    groups = param_groups(resnet(10), 0.5)
    assert [group["name"] for group in groups] == ["stem.conv", "down1.conv", "block1", "down2.conv", "block2", "head"]
    golden = [0.5 / 118.81376, 0.5 / 45.6976, 0.5 / 17.576, 0.5 / 6.76, 0.5 / 2.6, 0.5]
    assert [group["lr"] for group in groups] == pytest.approx(golden, rel=1e-12)


def test_rates_on_an_encoder_fall_by_the_factor_asked_for() -> None:
    groups = param_groups(Encoder(), 1.0, factor=2)
    expected = [("words", 1 / 16), ("encoder.layers.0", 1 / 8), ("encoder.layers.1", 1 / 4), ("encoder.layers.2", 1 / 2)]
    assert [(group["name"], group["lr"]) for group in groups] == [*expected, ("classifier", 1.0)]


def test_factor_one_gives_all_the_same_rate() -> None:
    assert {group["lr"] for group in param_groups(resnet(10), 0.3, factor=1)} == {0.3}


def test_every_parameter_frozen_or_not_is_in_one_group_and_an_optimizer_takes_them() -> None:
    model = resnet(10)
    freeze(model, -1)
    optimizer = torch.optim.AdamW(param_groups(model, 0.1), lr=0.1)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    ("lr", "factor", "named"),
    [(0, 2.6, "lr=0"), (float("nan"), 2.6, "lr=nan"), (0.1, 0.9, "factor=0.9"), (0.1, True, "factor=")],
)
def test_rates_and_factors_out_of_range_are_refused(lr: float, factor: float, named: str) -> None:
    with pytest.raises(InputError, match=named):
        param_groups(convnet(), lr, factor)


def test_a_model_without_parameters_has_no_groups_to_rate() -> None:
    with pytest.raises(InputError, match="ReLU has no parameters"):
        param_groups(nn.ReLU(), 0.1)


# freezing


def test_freezing_counts_from_the_input_and_back() -> None:
    model = convnet()
    assert freeze(model, 2) == ["0", "3"]
    assert trainable(model) == ["8.weight", "8.bias"]
    assert freeze(model, 1) == ["0"]
    assert trainable(model) == ["3.weight", "3.bias", "4.weight", "4.bias", "8.weight", "8.bias"]
    assert freeze(model, 0) == []
    assert len(trainable(model)) == len(list(model.parameters()))
    assert freeze(model, -1) == ["0", "3"]


def test_what_the_user_froze_stays_frozen_when_groups_are_thawed() -> None:
    model = convnet()
    model[0].bias.requires_grad_(False)
    model[3].requires_grad_(False)
    for count in (0, -1, 1, 0):
        freeze(model, count)
    assert trainable(model) == ["0.weight", "1.weight", "1.bias", "4.weight", "4.bias", "8.weight", "8.bias"]


def test_a_copy_of_a_frozen_model_can_be_thawed() -> None:
    model = convnet()
    freeze(model, -1)
    twin = copy.deepcopy(model)
    freeze(twin, 0)
    assert trainable(twin) == [name for name, _ in twin.named_parameters()]
    assert trainable(model) == ["8.weight", "8.bias"]
    freeze(model, 0)
    assert trainable(model) == trainable(twin)


def test_a_shared_parameter_is_frozen_and_thawed_once() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(3, 2))
    freeze(model, -1)
    assert trainable(model) == ["3.weight", "3.bias"]
    freeze(model, 0)
    assert len(trainable(model)) == 4


@pytest.mark.parametrize("bad", [3, 9, -2, 1.0, True])
def test_freezing_everything_or_nonsense_is_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="num_groups="):
        freeze(convnet(), bad)


def test_all_but_the_head_of_a_model_that_is_only_a_head_is_nothing() -> None:
    assert freeze(nn.Linear(3, 2), -1) == []


# trap 14


@pytest.mark.parametrize("affine", [True, False])
def test_frozen_batchnorm_is_put_in_eval_mode_by_train_mode(affine: bool) -> None:
    model = convnet(affine=affine)
    freeze(model, 1)
    assert train_mode(model) is model
    assert [model[index].training for index in (0, 1, 3, 4, 7, 8)] == [False, False, True, True, True, True]
    assert model.training
    freeze(model, 0)
    assert all(module.training for module in train_mode(model).modules())


def test_what_trains_inside_a_frozen_parent_trains() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2))
    model[0][0].requires_grad_(False)
    train_mode(model)
    assert [model[0].training, model[0][0].training, model[0][1].training] == [True, False, True]


def watched(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def moved(model: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    """The layers, by number, of which something changed."""
    return {name.split(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("affine", [True, False])
def test_trap_14_frozen_batchnorm_stays_still_through_fit(images: tuple[torch.Tensor, torch.Tensor], affine: bool) -> None:
    model = convnet(affine=affine)
    before = watched(model)
    tricks = hp.Tricks(transfer=Transfer(freeze=1))
    hp.fit(model, images, images, optimizer=plain_sgd, epochs=2, batch_size=32, tricks=tricks)
    assert moved(model, before) == {"3", "4", "8"}
    assert int(model[4].num_batches_tracked) == 6
    before = watched(model)
    freeze(model, 0)
    hp.fit(model, images, images, optimizer=plain_sgd, epochs=1, batch_size=32, tricks=hp.Tricks(transfer=Transfer()))
    assert moved(model, before) == {"0", "1", "3", "4", "8"}


def trains_after(
    run: Callable[..., Any], model: nn.Module, images: Any, transfer: Transfer | None, **settings: Any
) -> list[str]:
    """What trains when a run is over, however it ended."""
    tricks = hp.Tricks(transfer=transfer)
    with contextlib.suppress(ValueError):
        run(model, images, optimizer=plain_sgd, epochs=2, batch_size=32, tricks=tricks, **settings)
    return trainable(model)


def train_through(model: nn.Module, train: Any, *, stop: bool = False, **settings: Any) -> None:
    for _ in hp.train(model, train, **settings):
        if stop:
            raise ValueError("stop")


def failing(model: nn.Module, data: Any) -> float:
    raise ValueError("stop")


@pytest.mark.parametrize("run", [hp.fit, train_through])
def test_what_a_run_froze_trains_in_the_next(run: Callable[..., Any], images: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = convnet()
    everything, every_layer = trainable(model), {"0", "1", "3", "4", "8"}
    assert trains_after(run, model, images, Transfer(mode="head")) == everything
    before = watched(model)
    trains_after(run, model, images, Transfer(mode="full"))
    assert moved(model, before) == every_layer
    trains_after(run, model, images, Transfer(freeze=1))
    before = watched(model)
    trains_after(run, model, images, None)
    assert moved(model, before) == every_layer


@pytest.mark.parametrize(
    ("run", "settings"),
    [(hp.fit, {"valid": True, "metrics": {"m": failing}}), (hp.fit, {"loss": "nonsense"}), (train_through, {"stop": True})],
)
def test_so_it_does_after_a_run_that_raised(
    run: Callable[..., Any], settings: dict[str, Any], images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = convnet()
    settings = settings | ({"valid": images} if "valid" in settings else {})
    assert trains_after(run, model, images, Transfer(mode="head"), **settings) == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("mode", ["head", "head-first", "gradual", "full"])
def test_what_the_user_froze_is_frozen_after_a_run_as_before(mode: str, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = convnet()
    freeze(model, 1)
    model[4].bias.requires_grad_(False)
    before = trainable(model)
    assert trains_after(hp.fit, model, images, Transfer(mode=mode)) == before
    model[3].requires_grad_(False)
    freeze(model, 0)
    assert trainable(model) == ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "8.weight", "8.bias"]


def test_a_run_that_was_left_in_the_middle_is_over_when_the_next_begins(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    model = convnet()
    settings = {"optimizer": plain_sgd, "epochs": 1, "batch_size": 32}
    left = hp.train(model, images, tricks=hp.Tricks(transfer=Transfer(mode="head")), **settings)
    next(left)
    assert trainable(model) == ["8.weight", "8.bias"]
    before = watched(model)
    hp.fit(model, images, tricks=hp.Tricks(transfer=Transfer()), **settings)
    assert moved(model, before) == {"0", "1", "3", "4", "8"}


def test_what_is_set_between_two_steps_of_a_run_that_freezes_nothing_stays(
    images: tuple[torch.Tensor, torch.Tensor],
) -> None:
    model = convnet()
    for _ in hp.train(model, images, optimizer=plain_sgd, epochs=1, batch_size=32):
        model[0].requires_grad_(False)
    assert "0.weight" not in trainable(model)


def test_a_fresh_head_trains_after_the_run_also_where_the_old_one_was_frozen(
    images: tuple[torch.Tensor, torch.Tensor],
) -> None:
    model = convnet(num_classes=7).requires_grad_(False)
    model[4].requires_grad_(True)
    assert trains_after(hp.fit, model, images, Transfer()) == ["4.weight", "4.bias", "8.weight", "8.bias"]


def test_trap_14_frozen_batchnorm_is_thawed_where_it_became_one_over_the_workers() -> None:
    model = convnet()
    freeze(model, -1)
    assert trainable(convert_batchnorm(model)) == ["8.weight", "8.bias"]
    freeze(model, 0)
    assert trainable(model) == [name for name, _ in model.named_parameters()]


def test_frozen_weights_do_not_decay_and_take_no_momentum(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    def decaying(params: Any) -> torch.optim.SGD:
        return torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.5)

    model = convnet()
    before = watched(model)
    hp.fit(model, images, optimizer=decaying, epochs=1, batch_size=32, tricks=hp.Tricks(transfer=Transfer(freeze=-1)))
    assert moved(model, before) == {"8"}


# traps 11 and 13: the step schedule


def frozen_at(step: int, frozen: int, every_epochs: float, steps_per_epoch: int) -> int:
    """The rule, from its definition: one group fewer after each period."""
    return max(0, frozen - floor(step / (every_epochs * steps_per_epoch) + 1e-9))


@given(
    total=st.integers(1, 200),
    per_epoch=st.integers(1, 50),
    groups=st.integers(2, 12),
    every=st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 1, 1.1, 2, 7]),
    freezing=st.integers(1, 11),
)
def test_trap_11_phases_are_a_function_of_the_step(
    total: int, per_epoch: int, groups: int, every: float, freezing: int
) -> None:
    frozen = min(freezing, groups - 1)
    phases = Transfer(freeze=frozen, unfreeze_every_epochs=every).phases(total, per_epoch, groups)
    starts = [start for start, _ in phases]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] < total
    counts = [count for _, count in phases]
    assert counts == sorted(set(counts), reverse=True)
    for step in range(total):
        current = [count for start, count in phases if start <= step][-1]
        assert current == frozen_at(step, frozen, every, per_epoch)


@pytest.mark.parametrize(
    ("trick", "expected"),
    [
        (Transfer(), [(0, 0)]),
        (Transfer(freeze=2), [(0, 2)]),
        (Transfer(freeze=-1), [(0, 3)]),
        (Transfer(freeze=-1, unfreeze_every_epochs=1), [(0, 3), (10, 2), (20, 1)]),
        (Transfer(freeze=-1, unfreeze_every_epochs=0.25), [(0, 3), (3, 2), (5, 1), (8, 0)]),
        (Transfer(freeze=3, unfreeze_every_epochs=0.01), [(0, 3), (1, 0)]),
        (Transfer(freeze=1, unfreeze_every_epochs=1e308), [(0, 1)]),
    ],
)
def test_phases_of_thirty_steps_of_ten_an_epoch(trick: Transfer, expected: list[tuple[int, int]]) -> None:
    assert trick.phases(30, 10, 4) == expected


def test_a_period_that_is_a_rounded_product_keeps_its_boundary() -> None:
    assert 1.1 * 100 > 110
    starts = [start for start, _ in Transfer(freeze=9, unfreeze_every_epochs=1.1).phases(1000, 100, 10)]
    assert starts == [110 * index for index in range(10)]


def test_more_frozen_than_there_are_is_refused_by_its_field() -> None:
    with pytest.raises(InputError, match=r"Transfer\.freeze=4 leaves nothing of 4 groups to train: expected -1 to 3"):
        Transfer(freeze=4).phases(30, 10, 4)


def test_groups_unfreeze_through_the_loop_from_the_last_and_the_optimizer_has_them_all_from_the_start(
    images: tuple[torch.Tensor, torch.Tensor],
) -> None:
    model = convnet()
    tricks = hp.Tricks(transfer=Transfer(freeze=-1, unfreeze_every_epochs=1))
    before, seen, sizes = watched(model), [], set()
    for step in hp.train(model, images, optimizer=plain_sgd, epochs=4, batch_size=48, tricks=tricks):
        sizes.add(tuple(len(group["params"]) for group in step.run.optimizer.param_groups))
        seen.append(moved(model, before))
        before = watched(model)
    head, last, every = {"8"}, {"3", "4", "8"}, {"0", "1", "3", "4", "8"}
    assert seen == [head, head, last, last, every, every, every, every]
    assert sizes == {(4, 4, 2)}


def test_trap_11_a_resumed_run_unfreezes_at_the_same_steps(
    images: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"optimizer": sgd, "batch_size": 48, "epochs": 3}
    settings["tricks"] = hp.Tricks(transfer=Transfer(freeze=-1, unfreeze_every_epochs=1, rate_factor=1.5))
    whole = hp.fit(convnet(), images, **settings).model
    first = hp.fit(convnet(), images, images, target=("valid_loss", 1e9), run_dir=tmp_path / "run", **settings)
    assert first.steps["applied"] == 2
    second = hp.fit(convnet(), images, run_dir=tmp_path / "run", resume=True, **settings)
    assert second.steps["applied"] == 6
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_each_groups_rate_times_the_schedule_reaches_the_weights(images: tuple[torch.Tensor, torch.Tensor]) -> None:
    model, twin = convnet().eval(), convnet().eval()
    model[7].p = twin[7].p = 0.0
    for step in hp.train(
        *(model, (images[0][:32], images[1][:32])),
        optimizer=plain_sgd, epochs=1, batch_size=32, tricks=hp.Tricks(transfer=Transfer(rate_factor=2)),
    ):  # fmt: skip
        assert [group["lr"] for group in step.run.optimizer.param_groups] == pytest.approx([0.025, 0.05, 0.1], rel=1e-12)
    nn.functional.cross_entropy(twin.train()(images[0][:32]), images[1][:32]).backward()
    for (name, after), before in zip(model.named_parameters(), twin.parameters(), strict=True):
        rate = {"0": 0.025, "1": 0.025, "3": 0.05, "4": 0.05, "8": 0.1}[name[0]]
        torch.testing.assert_close(after.detach(), (before - rate * before.grad).detach(), rtol=1e-4, atol=1e-6)


# the trick as a whole


def test_prepare_loads_swaps_and_freezes_in_that_order_and_says_so(tmp_path: Path) -> None:
    source = convnet(num_classes=1000)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = convnet(num_classes=1000)
    torch.nn.init.zeros_(model[0].weight)
    said = prepare(Transfer(weights=str(tmp_path / "w.safetensors"), freeze=-1, rate_factor=2), model, 3)
    assert torch.equal(model[0].weight, source[0].weight)
    assert model[8].out_features == 3
    assert trainable(model) == ["8.weight", "8.bias"]
    assert said[0] == f"weights: source: {tmp_path / 'w.safetensors'}"
    assert said[1] == "weights: loaded 16 tensors: 100.0% of the parameters outside the head"
    assert said[2:] == [
        "head 8 replaced: 1000 -> 3 outputs",
        "3 layer groups, by order of registration",
        "frozen: the first 2 of 3 groups, up to 3",
        "learning rate divided by 2 per group, 3 groups: 0 has 2.5e-01 of the head's",
    ]


def test_a_head_that_fits_is_loaded_and_kept(tmp_path: Path) -> None:
    source = convnet()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = nn.Sequential(*convnet())
    nn.init.zeros_(model[8].weight)
    assert "head 8 has 4 outputs already" in prepare(Transfer(weights=str(tmp_path / "w.safetensors")), model, 4)
    assert torch.equal(model[8].weight, source[8].weight)


def test_the_new_head_is_a_function_of_the_seed_and_leaves_the_generator_alone() -> None:
    heads = []
    for noise, seed in ((1, 5), (2, 5), (1, 6)):
        model = convnet(num_classes=9)
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        prepare(Transfer(), model, 4, seed)
        assert torch.equal(torch.get_rng_state(), state)
        heads.append(model[8].weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_without_a_number_of_classes_the_head_is_kept_and_it_says_so() -> None:
    model = convnet(num_classes=9)
    assert "head kept: the number of classes is unknown from the loss and targets" in prepare(Transfer(), model, None)
    assert model[8].out_features == 9
    assert not any("head" in line for line in prepare(Transfer(swap_head=False, rate_factor=1), model, 4))
    assert model[8].out_features == 9


def test_a_model_without_a_head_is_refused_unless_swapping_is_off() -> None:
    with pytest.raises(InputError, match="set swap_head=False"):
        prepare(Transfer(), nn.LSTM(2, 2), 3)
    prepare(Transfer(swap_head=False), nn.LSTM(2, 2), 3)


def test_a_model_of_which_nothing_trains_is_refused() -> None:
    with pytest.raises(InputError, match="Sequential has no trainable parameter"):
        prepare(Transfer(), convnet().requires_grad_(False), 4)
    model = convnet(num_classes=9).requires_grad_(False)
    prepare(Transfer(), model, 4)
    assert trainable(model) == ["8.weight", "8.bias"]


def test_weights_from_a_file_reach_the_loop(images: tuple[torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    source = convnet(num_classes=7)
    nn.init.constant_(source[0].weight, 0.125)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = convnet(num_classes=7)
    trick = Transfer(weights=str(tmp_path / "w.safetensors"), freeze=1)
    result = hp.fit(model, images, optimizer=plain_sgd, epochs=1, batch_size=48, tricks=hp.Tricks(transfer=trick))
    assert torch.equal(model[0].weight.detach(), torch.full((4, 1, 3, 3), 0.125))
    assert model[8].out_features == 4
    assert any("head 8 replaced: 7 -> 4 outputs" in note for note in result.notes)


def test_a_path_object_is_taken_as_its_text() -> None:
    assert Transfer(weights=Path("some") / "w.pth").weights == str(Path("some") / "w.pth")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        ("weights", ""),
        ("weights", 5),
        ("swap_head", 1),
        ("freeze", -2),
        ("freeze", 1.0),
        ("freeze", True),
        ("unfreeze_every_epochs", -1),
        ("unfreeze_every_epochs", float("inf")),
        ("rate_factor", 0.99),
        ("rate_factor", "2.6"),
        ("min_match", 1.5),
        ("min_match", float("nan")),
    ],
)
def test_bad_fields_are_refused_by_name_and_value(field: str, bad: Any) -> None:
    with pytest.raises(InputError, match=rf"Transfer\.{field}={bad!r}"):
        Transfer(**{field: bad})


def test_unfreezing_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"unfreeze_every_epochs=2 has nothing to unfreeze: set freeze, say to -1"):
        Transfer(unfreeze_every_epochs=2)


def test_the_defaults_are_the_papers() -> None:
    assert Transfer() == Transfer(
        weights=None, swap_head=True, freeze=0, unfreeze_every_epochs=0.0, rate_factor=2.6, min_match=0.5
    )


def test_layer_groups_cover_the_model() -> None:
    model = resnet(10)
    held = [id(p) for _, parameters in layer_groups(model) for p in parameters]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(layer_groups(model)) == 6


# which head: as the loss and the labels say


def points(labels: torch.Tensor, num: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(len(labels), num, generator=torch.Generator().manual_seed(0)), labels


def outputs_of(loss: object, train: object, valid: object = None, num_outputs: int = 4) -> int:
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, num_outputs))
    settings: dict[str, Any] = {"loss": loss, "epochs": 1, "batch_size": 8, "tricks": hp.Tricks(transfer=Transfer())}
    hp.fit(model, train, valid, optimizer=partial(torch.optim.SGD, lr=0.1), **settings)
    return model[2].out_features


def distances(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (output - output.mean(0)).square().mean() + 0 * labels.sum()


@pytest.mark.parametrize("loss", [None, "cross_entropy", nn.CrossEntropyLoss(), nn.functional.cross_entropy])
def test_a_loss_over_classes_gives_the_head_as_many_outputs(loss: object) -> None:
    assert outputs_of(loss, points(torch.arange(24) % 3)) == 3


def test_a_loss_that_is_not_over_classes_leaves_the_head() -> None:
    assert outputs_of(distances, points(torch.arange(24) % 3)) == 4


def test_labels_that_only_the_validation_part_has_count() -> None:
    train, valid = points(torch.arange(24) % 3), points(torch.arange(16) % 4)
    assert outputs_of(None, train, valid) == 4
    assert outputs_of(None, train, torch.utils.data.TensorDataset(*valid)) == 4
    assert outputs_of(None, train, points(torch.zeros(8, dtype=torch.long)), num_outputs=9) == 3


class Tied(nn.Module):
    """Tokens whose embedding is the head too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block = nn.Embedding(9, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embedding(ids)).relu().mean(1))


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_head_that_shared_its_weight_leaves_it_to_the_embedding(workers: int) -> None:
    ids = torch.randint(0, 9, (48, 5), generator=torch.Generator().manual_seed(0))
    parallel = hp.DataParallel(workers=workers) if workers > 1 else None
    model, tricks = Tied(), hp.Tricks(transfer=Transfer(mode="head"), data_parallel=parallel)
    before = model.embedding.weight.detach().clone()
    hp.fit(model, (ids, ids[:, 0] % 3), optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=8, tricks=tricks)
    assert model.head.weight.shape == (3, 8)
    assert torch.equal(model.embedding.weight, before)
