"""One contract for all seven tricks; a new trick joins by adding a row."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import heptane as hp
from heptane.tricks import KINDS

NAN, INF = float("nan"), float("inf")
NOT_NUMBERS = ("1", None, True, [1], NAN, INF)


class Row(NamedTuple):
    """A trick: its class, other settings than the defaults, and for each field values that it must refuse."""

    kind: type
    settings: dict[str, Any]
    refused: dict[str, tuple[Any, ...]]


TABLE = {
    "data_parallel": Row(
        hp.DataParallel,
        {"workers": 2, "bucket_mib": 1.5},
        {
            "workers": (0, -1, 1.5, "two", None, True),
            "strategy": ("zero", "", None),
            "sync_batchnorm": ("no", 1, None),
            "bucket_mib": (0, -1.0, *NOT_NUMBERS),
            "find_unused": (1, "yes", None),
            "timeout_seconds": (0, -1.0, *NOT_NUMBERS),
            "restarts": (-1, 0.5, *NOT_NUMBERS),
            "keep": ("rate", None),
        },
    ),
    "lr_scaling": Row(
        hp.LRScaling,
        {"reference_batch": 64, "rule": "sqrt", "warmup_epochs": 2.5, "start": 0.0},
        {
            "reference_batch": (0, -256, 256.0, *NOT_NUMBERS),
            "rule": ("cubic", "", None),
            "warmup_epochs": (-1, "1", True, NAN, INF),
            "warmup_steps": (-1, 2.5, "1", True),
            "start": (-0.1, 1.1, "0", NAN),
        },
    ),
    "cyclical": Row(
        hp.Cyclical,
        {"shape": "triangular2", "cycle_epochs": 4.0, "start": 0.1},
        {
            "shape": ("circle", None),
            "start": (-0.1, 1.1, *NOT_NUMBERS),
            "final": (-0.1, 1.1, *NOT_NUMBERS),
            "warm_fraction": (-0.1, 1.0, *NOT_NUMBERS),
            "phases": (1, 4, 2.0, *NOT_NUMBERS),
            "anneal": ("exponential", None),
            "cycle_epochs": (0, -1, *NOT_NUMBERS),
            "period_factor": (0.5, *NOT_NUMBERS),
            "gamma": (0, 1.1, *NOT_NUMBERS),
            "momentum_low": (-0.1, 0.96, *NOT_NUMBERS),
            "momentum_high": (-0.1, 1.0, *NOT_NUMBERS),
            "cycle_momentum": ("no", 1, None),
        },
    ),
    "mixup": Row(
        hp.Mixup,
        {"alpha": 1.0, "per_sample": True, "off_last_epochs": 2},
        {
            "alpha": (-0.1, *NOT_NUMBERS),
            "cutmix_alpha": (-0.1, *NOT_NUMBERS),
            "cutmix_probability": (-0.1, 1.1, *NOT_NUMBERS),
            "per_sample": ("no", 1, None),
            "layer": ("", 3),
            "off_last_epochs": (-1, *NOT_NUMBERS),
        },
    ),
    "label_smoothing": Row(
        hp.LabelSmoothing, {"eps": 0.2}, {"eps": (-0.1, 1.0, *NOT_NUMBERS), "optional": ("yes", 1, None)}
    ),
    "transfer": Row(
        hp.Transfer,
        {"weights": "net.pth", "freeze": -1, "unfreeze_every_epochs": 1.0},
        {
            "weights": ("", 3),
            "swap_head": ("no", 1, None),
            "freeze": (-2, 1.5, *NOT_NUMBERS),
            "unfreeze_every_epochs": (-1, *NOT_NUMBERS),
            "rate_factor": (0.5, *NOT_NUMBERS),
            "min_match": (-0.1, 1.1, *NOT_NUMBERS),
            "mode": ("heads", "", True),
            "head_epochs": (0, -1, *NOT_NUMBERS),
            "groups": (3,),
            "lora_rank": (-1, 1.5, *NOT_NUMBERS),
            "lora_alpha": (0, -1),
            "cache": ("ram", "", None),
            "cache_dtype": ("fp8", "", None),
        },
    ),
    "mixed_precision": Row(
        hp.MixedPrecision,
        {"dtype": "bf16", "channels_last": "off", "scale": 1024.0},
        {
            "dtype": ("fp8", "", None),
            "channels_last": ("yes", True),
            "scale": (0, -1, *NOT_NUMBERS),
            "growth_steps": (0, 1.5, *NOT_NUMBERS),
            "floor": (0, 2.0**17, *NOT_NUMBERS),
        },
    ),
}
SECTIONS = ("Equation", "Source", "Meets the loop at", "Costs, and when it does not help")


@pytest.fixture(params=TABLE, ids=str)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def module_of(name: str) -> Any:
    return importlib.import_module(f"heptane.tricks.{name}")


def test_the_table_covers_exactly_the_seven() -> None:
    assert len(TABLE) == 7
    assert list(TABLE) == list(KINDS) == [field.name for field in dataclasses.fields(hp.Tricks)]
    assert [row.kind for row in TABLE.values()] == list(KINDS.values())
    folder = Path(str(module_of("mixup").__file__)).parent
    assert {path.stem for path in folder.glob("*.py")} == {"__init__", "recommended", *TABLE}


def test_is_frozen_and_keyword_only_and_inherits_nothing(name: str) -> None:
    kind, settings, _ = TABLE[name]
    trick = kind()
    field = dataclasses.fields(trick)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(trick, field, getattr(trick, field))
    with pytest.raises(TypeError, match="positional"):
        kind(getattr(trick, field))
    assert kind.__bases__ == (object,)
    assert kind() == trick != kind(**settings)
    assert hash(kind()) == hash(trick)


def test_lives_in_the_file_of_its_name(name: str) -> None:
    kind = TABLE[name].kind
    assert kind.__module__ == f"heptane.tricks.{name}"
    assert getattr(hp, kind.__name__) is kind
    assert kind.__name__ in hp.__all__


def test_every_field_refuses_what_is_wrong_by_its_name_the_value_and_the_remedy(name: str) -> None:
    kind, _, refused = TABLE[name]
    assert set(refused) == {field.name for field in dataclasses.fields(kind)}
    for field, values in refused.items():
        for value in values:
            with pytest.raises(hp.InputError) as caught:
                kind(**{field: value})
            message = str(caught.value)
            assert f"{kind.__name__}.{field}={value!r}" in message, f"{field}={value!r}: {message}"
            assert "expected" in message, message
            assert "\n" not in message


def test_an_unknown_field_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="bogus"):
        TABLE[name].kind(bogus=1)


def test_every_field_is_documented_where_it_stands(name: str) -> None:
    kind = TABLE[name].kind
    (body,) = (
        node.body
        for node in ast.parse(inspect.getsource(module_of(name))).body
        if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    documented = {
        field.target.id
        for field, after in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
    }
    assert documented == {field.name for field in dataclasses.fields(kind)}
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(kind))


def test_the_module_says_its_equation_its_source_its_slot_and_its_costs(name: str) -> None:
    text = module_of(name).__doc__ or ""
    lines = text.splitlines()
    assert re.fullmatch(r"[\w -]+: .*[.,:;\w]", lines[0])
    assert [line for line in lines if line in SECTIONS] == list(SECTIONS)
    source = text[text.index("\nSource\n") : text.index("\nMeets the loop at\n")]
    assert "arXiv:" in source
    for section, following in zip(SECTIONS, (*SECTIONS[1:], None), strict=True):
        begin = lines.index(section) + 1
        assert "".join(lines[begin : lines.index(following) if following else None]).strip(), section


def test_none_is_off(name: str) -> None:
    kind, settings, _ = TABLE[name]
    assert getattr(hp.Tricks(), name) is None
    assert hp.Tricks().on == []
    tricks = hp.Tricks(**{name: kind(**settings)})
    assert tricks.on == [name]
    assert tricks.without(name) == hp.Tricks()
    for wrong in (True, False, kind, settings, "on"):
        with pytest.raises(
            hp.InputError, match=rf"^Tricks\.{name}=.*expected a heptane\.{kind.__name__}\(\.\.\.\), or None"
        ):
            hp.Tricks(**{name: wrong})


def test_another_trick_in_its_place_is_refused(name: str) -> None:
    for other, row in TABLE.items():
        if other != name:
            with pytest.raises(hp.InputError, match=f"Tricks.{name}="):
                hp.Tricks(**{name: row.kind()})


def test_settings_survive_json(name: str) -> None:
    kind, settings, _ = TABLE[name]
    for trick in (kind(), kind(**settings)):
        assert kind(**json.loads(json.dumps(dataclasses.asdict(trick)))) == trick


def test_without_an_unknown_name_is_refused() -> None:
    with pytest.raises(hp.InputError, match=r"trick='mix_up' is not known \(did you mean mixup\?\)"):
        hp.Tricks().without("mix_up")


def test_recommended_gives_a_reason_for_each_of_the_seven() -> None:
    from heptane.tricks import recommend

    for facts in (
        {},
        {"epochs": 100, "classes": False, "momentum": False, "reference_batch": 64, "weights": "a.pth", "num_gpus": 4},
    ):
        tricks, why = recommend(**facts)
        assert set(why) == set(TABLE)
        assert all(why.values())
        assert hp.Tricks.recommended(**facts) == tricks
    assert tricks.on == ["data_parallel", "lr_scaling", "cyclical", "transfer", "mixed_precision"]
    assert tricks.cyclical == hp.Cyclical(cycle_momentum=False)
    assert recommend(num_gpus=0)[0].on == ["cyclical", "label_smoothing", "mixed_precision"]
    with pytest.raises(hp.InputError, match="epochs=0"):
        recommend(epochs=0)


@pytest.mark.parametrize(
    ("model", "targets", "loss"),
    [
        (lambda: torch.nn.Linear(4, 1), torch.randn(32), None),
        (lambda: torch.nn.Linear(4, 3), torch.randn(32, 3), "l1"),
        (lambda: torch.nn.Linear(4, 1), torch.randn(32, 1), lambda outputs, targets: (outputs - targets).square().mean()),
    ],
)
def test_the_recommended_tricks_need_no_argument_where_there_are_no_classes(model: Any, targets: Any, loss: Any) -> None:
    data = torch.randn(32, 4), targets
    result = hp.fit(
        model(), data, optimizer="sgd", lr=0.01, epochs=1, batch_size=8, loss=loss, tricks=hp.Tricks.recommended()
    )
    assert any("label smoothing is left out: there are no classes to smooth" in note for note in result.notes)
    with pytest.raises(hp.InputError, match="label_smoothing with"):
        hp.fit(
            model(),
            data,
            optimizer="sgd",
            epochs=1,
            batch_size=8,
            loss=loss,
            tricks=hp.Tricks(label_smoothing=hp.LabelSmoothing()),
        )
