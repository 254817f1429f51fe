"""Assembly: what is refused, and the order in which the pieces are put together."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any

import pytest
import torch
from tests.helpers import sgd
from torch.utils.data import DataLoader, TensorDataset

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.core.run import Phase, Run
from heptane.model.probe import probe_output

N, CLASSES = 20, 3


def net(num_out: int = CLASSES) -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4), torch.nn.Linear(4, num_out))


def points() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return torch.randn(N, 6, generator=random), torch.arange(N) % CLASSES


def run(model: Any = None, data: Any = None, tricks: Any = None, **more: Any) -> Run:
    settings: dict[str, Any] = {"optimizer": sgd, "epochs": 4, "batch_size": 8, "device": "cpu"} | more
    return assemble(
        net() if model is None else model, points() if data is None else data, Plan.of(**settings), tricks=tricks
    )


X, Y = points()
NAN = X.clone()
NAN[13, 2] = float("nan")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no model": ({"model": lambda x: x}, "model of type function: expected a torch.nn.Module"),
    "a model without parameters": ({"model": torch.nn.Flatten()}, "Flatten has no parameter that trains$"),
    "a model that is frozen": (
        {"model": net().requires_grad_(False)},
        r"no parameter that trains; call requires_grad_\(True\)",
    ),
    "an optimizer, not a factory": (
        {"optimizer": sgd([torch.nn.Parameter(torch.zeros(1))])},
        r"optimizer=SGD: expected a factory, such as lambda params",
    ),
    "a name": ({"optimizer": "sdg", "lr": 0.1}, "optimizer='sdg' is not known"),
    "a factory of something else": ({"optimizer": list}, "the optimizer factory returned list: expected a torch.optim"),
    "LBFGS": ({"optimizer": torch.optim.LBFGS}, "LBFGS evaluates the loss many times per step"),
    "no epochs": ({"epochs": 0}, r"epochs=0 is out of range: expected a number in \(0, 1e\+09\]"),
    "epochs as text": ({"epochs": "3"}, "epochs='3': expected a number"),
    "accumulate": ({"accumulate": 0}, "accumulate=0 is out of range"),
    "half an accumulate": ({"accumulate": 1.5}, "accumulate=1.5: expected a whole number"),
    "clip_norm": ({"clip_norm": 0}, "clip_norm=0 is out of range"),
    "seed": ({"seed": -1}, "seed=-1 is out of range"),
    "a seed that is no whole number": ({"seed": 0.5}, "seed=0.5: expected a whole number"),
    "a device": ({"device": "toaster"}, "device='toaster' is not available"),
    "no batch size": ({"batch_size": None}, "batch_size=None"),
    "a large batch": ({"batch_size": 21}, "batch_size=21 is larger than the data"),
    "a loss": ({"loss": "crossentropy"}, r"loss='crossentropy' is not known \(did you mean cross_entropy\?\)"),
    "NaN in the inputs": ({"data": (NAN, Y)}, "training inputs hold NaN or infinity, first in sample 13"),
    "NaN in the targets": ({"data": (X, NAN[:, :3])}, "training targets hold NaN or infinity, first in sample 13"),
    "a label too high": (
        {"data": (X, Y + 1)},
        "label 3 of sample 2 is out of range: the model has 3 outputs, so labels are 0 to 2",
    ),
    "a label below 0": ({"data": (X, Y - 1)}, "label -1 of sample 0 is out of range"),
    "targets of another shape": ({"data": (X, torch.rand(N, 4)), "loss": "mse"}, "as many outputs as there are targets"),
    "soft targets of another shape": (
        {"data": (X, torch.softmax(torch.rand(N, 4), 1)), "loss": "cross_entropy"},
        "one probability per class",
    ),
    "a tuple as targets": ({"data": (X, (Y, Y))}, "pass loss="),
    "tricks that are none": ({"tricks": {"mixup": 0.2}}, r"tricks=\{'mixup': 0\.2\}: expected heptane\.Tricks"),
    "one trick, not a set": ({"tricks": hp.Mixup()}, r"tricks=Mixup\(.*\): expected heptane\.Tricks"),
    "a setting that is none": ({"tricks": hp.Tricks(transfer=hp.Transfer(freeze=7))}, r"Transfer\.freeze=7"),
    "a layer to mix that is none": ({"tricks": hp.Tricks(mixup=hp.Mixup(layer="9"))}, r"Mixup\.layer='9' is not a module"),
    "momentum to cycle where there is none": (
        {"tricks": hp.Tricks(cyclical=hp.Cyclical()), "optimizer": lambda params: torch.optim.SGD(params, lr=0.1)},
        "momentum is 0, and cycling would turn it on",
    ),
    "a rule for an unknown optimizer": (
        {"tricks": hp.Tricks(lr_scaling=hp.LRScaling()), "optimizer": torch.optim.Adagrad},
        "Adagrad belongs to no family with a known rule",
    ),
    "groups that the factory throws together": (
        {
            "tricks": hp.Tricks(transfer=hp.Transfer()),
            "optimizer": lambda groups: torch.optim.SGD([p for group in groups for p in group["params"]], lr=0.1),
        },
        "made 1 parameter groups of the 3 it was given",
    ),
    "16-bit master weights": (
        {
            "tricks": hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="bf16")),
            "model": net().bfloat16(),
            "data": (X.bfloat16(), Y),
        },
        r"parameter '0\.weight' of type torch\.bfloat16",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_trained(name: str) -> None:
    arguments, message = REFUSED[name]
    with pytest.raises(hp.InputError, match=message) as caught:
        run(**arguments)
    assert "\n" not in str(caught.value)


def test_finite_inputs_whose_sum_overflows_are_taken_and_opposite_infinities_are_not() -> None:
    large = torch.full((16, 3), 3e38)
    assemble(
        torch.nn.Linear(3, 2), (large, torch.zeros(16).long()), Plan.of(optimizer=torch.optim.SGD, epochs=1, batch_size=8)
    )
    large[4, 0], large[9, 0] = torch.inf, -torch.inf
    with pytest.raises(hp.InputError, match="inputs hold NaN or infinity, first in sample 4"):
        assemble(
            torch.nn.Linear(3, 2),
            (large, torch.zeros(16).long()),
            Plan.of(optimizer=torch.optim.SGD, epochs=1, batch_size=8),
        )


def test_an_unknown_setting_is_an_error_that_names_it() -> None:
    with pytest.raises(TypeError, match="num_epochs"):
        run(num_epochs=3)


def test_the_defaults_are_those_of_fit() -> None:
    fit = inspect.signature(hp.fit).parameters
    for field in dataclasses.fields(Plan):
        if field.name == "extras":
            assert fit["extras"].default is None
            continue
        default = inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        assert fit[field.name].default == default, field.name


def test_fit_race_and_train_take_their_extras_by_name_too_with_a_warning_but_for_two() -> None:
    with pytest.warns(FutureWarning, match=r"pass extras=heptane.Extras\(on_nan=..., patience=...\)"):
        hp.fit(net(), points(), points(), optimizer=sgd, epochs=1, batch_size=8, on_nan="stop", patience=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = hp.fit(net(), points(), optimizer=sgd, steps=3, batch_size=8, augment=lambda x: x)
    assert result.steps["planned"] == 3
    assert len(inspect.signature(hp.fit).parameters) == len(inspect.signature(hp.race).parameters) == 20
    with pytest.raises(hp.InputError, match=r"extras=3: expected heptane.Extras"):
        hp.fit(net(), points(), optimizer=sgd, epochs=1, batch_size=8, extras=3)
    with pytest.raises(hp.InputError, match="nan_limit=0"):
        hp.Extras(nan_limit=0)


def test_assembly_leaves_no_mark_on_model_random_state_and_modes() -> None:
    model = torch.nn.Sequential(net(), torch.nn.BatchNorm1d(CLASSES), torch.nn.Dropout(0.5))
    model[1].eval()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.random.get_rng_state()
    modes = [module.training for module in model.modules()]
    everything = hp.Tricks(
        lr_scaling=hp.LRScaling(),
        cyclical=hp.Cyclical(),
        mixup=hp.Mixup(),
        label_smoothing=hp.LabelSmoothing(),
        mixed_precision=hp.MixedPrecision(),
    )
    run(model, tricks=everything)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_is_guessed_from_all_targets_not_from_the_first_few() -> None:
    one_hot = torch.nn.functional.one_hot(Y, CLASSES).float()
    assert run(data=(X, one_hot)).criterion.name == "cross_entropy"
    several = one_hot.clone()
    several[-1] = 1.0
    assert run(data=(X, several)).criterion.name == "binary_cross_entropy"
    real = several.clone()
    real[-1] = 7.5
    assert run(data=(X, real)).criterion.name == "mse"


def test_transfer_makes_all_groups_up_front_and_scaling_multiplies_each() -> None:
    tricks = hp.Tricks(
        transfer=hp.Transfer(freeze=-1, unfreeze_every_epochs=1, rate_factor=2), lr_scaling=hp.LRScaling(reference_batch=2)
    )
    built = run(tricks=tricks)
    assert [group["name"] for group in built.optimizer.param_groups] == ["0", "2", "3"]
    assert built.base_rates == pytest.approx([0.1, 0.2, 0.4])
    assert built.phases == [Phase(0, 3, 2), Phase(3, 6, 1), Phase(6, 12, 0)]
    assert built.why["lr_scaling"].startswith("batch 8 is 4 x the reference 2: SGD family")


def test_transfer_without_freezing_leaves_what_the_user_froze() -> None:
    model = net()
    model[2].requires_grad_(False)
    built = run(model, tricks=hp.Tricks(transfer=hp.Transfer(rate_factor=1)))
    assert built.phases == [Phase(0, 12, None)]
    built.enter(built.phases[0])
    assert not model[2].weight.requires_grad


def test_the_head_is_swapped_before_the_optimizer_sees_the_model() -> None:
    model = net(7)
    built = run(model, tricks=hp.Tricks(transfer=hp.Transfer()))
    assert model[3].out_features == CLASSES
    assert any(p is model[3].weight for group in built.optimizer.param_groups for p in group["params"])


def test_channels_last_is_set_on_model_and_batches_before_any_wrap() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, CLASSES))
    images = torch.randn(N, 2, 6, 6)
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"))
    built = run(model, (images, Y), tricks)
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    _, batch = next(built.source.batches(0, 1, built.place))
    inputs, _ = batch.take(slice(None))
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert not inputs.is_contiguous()
    assert "fp32 channels last" in built.why["mixed_precision"]


def test_what_is_clipped_is_all_that_the_optimizer_holds_in_the_models_order() -> None:
    model = net()

    def backwards(params: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(list(reversed(list(params)[1:])), lr=0.1)

    clipped = run(model, optimizer=backwards).parameters
    assert [id(p) for p in clipped] == [id(p) for p in list(model.parameters())[1:]]


def test_a_trial_output_leaves_no_mark_and_is_the_models_in_eval_mode() -> None:
    model = torch.nn.Sequential(net(), torch.nn.Dropout(0.5))
    state = torch.random.get_rng_state()
    output = probe_output(model, X[:2])
    assert torch.equal(output, model.eval()(X[:2]))
    assert not output.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loader_brings_its_own_batch_size() -> None:
    built = run(data=DataLoader(TensorDataset(X, Y), 6), batch_size=None, accumulate=2)
    assert (built.source.steps_per_epoch, built.source.batch_size, built.total_steps) == (2, 12, 8)


def test_settings_by_name_in_order_and_empty_where_off() -> None:
    found = hp.Tricks(mixup=hp.Mixup(alpha=0.4)).settings()
    assert list(found) == list(hp.Tricks.__dataclass_fields__)
    assert found["mixup"]["alpha"] == 0.4
    assert found["cyclical"] == {}


def test_another_trick_off_is_another_run_and_the_notes_say_which_loss() -> None:
    assert run().notes == ["loss cross_entropy: the targets are integer classes"]
    assert run().why == {}
    assert run(loss="cross_entropy").notes == ["loss cross_entropy: asked for"]
