"""Settings from flags and files."""

from __future__ import annotations

import tomllib
from dataclasses import fields

import pytest

import heptane as hp
from heptane import InputError
from heptane.session.settings import Choice, Settings, choice, convert, field_docs, to_toml
from heptane.tricks import KINDS, Tricks, recommend


def test_every_field_of_every_trick_and_setting_is_documented() -> None:
    for kind in (Settings, *KINDS.values()):
        docs = field_docs(kind)
        for field in fields(kind):
            assert docs.get(field.name, "").endswith("."), f"{kind.__name__}.{field.name}"
            assert docs[field.name][0].isupper() or "_" in docs[field.name].split()[0]


@pytest.mark.parametrize(
    ("annotation", "value", "made"),
    [
        ("float", "1e-3", 0.001),
        ("float", 2, 2.0),
        ("int", "7", 7),
        ("int", "-1", -1),
        ("bool", "false", False),
        ("bool", "Yes", True),
        ("bool", True, True),
        ("int | str", "2", 2),
        ("int | str", "auto", "auto"),
        ("float | None", "none", None),
        ("str | None", "none", "none"),
        ("str", "x", "x"),
    ],
)
def test_convert(annotation: str, value: object, made: object) -> None:
    found = convert("--flag", annotation, value)
    assert found == made
    assert type(found) is type(made)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [("float", "many"), ("int", "1.5"), ("int", 1.5), ("int", True), ("bool", "maybe"), ("float", [1]), ("str", 3)],
)
def test_convert_refuses_by_name_and_value(annotation: str, value: object) -> None:
    with pytest.raises(InputError, match="--flag=") as caught:
        convert("--flag", annotation, value)
    assert repr(value) in str(caught.value)


def test_a_written_file_reads_back_as_the_same_settings() -> None:
    settings = Settings(data="digits", lr=0.3, target=0.9, compile=True)
    tricks = Tricks(mixup=hp.Mixup(alpha=0.7), data_parallel=hp.DataParallel(workers=2))
    content = tomllib.loads(to_toml(settings, tricks))
    own = {name: content[name] for name in content["tricks"]}
    assert Settings(**{name: content[name] for name in content if name not in (*KINDS, "tricks")}) == settings
    assert choice(content["tricks"], own).resolve(recommend())[0] == tricks


def test_choices_build_on_their_base() -> None:
    advice = recommend(epochs=4)
    assert Choice("none").resolve(advice)[0] == Tricks()
    assert Choice("recommended").resolve(advice)[0] == advice[0]
    tricks, why = choice("mixup,label-smoothing", {"cyclical": {"shape": "triangular"}}, ("mixup",)).resolve(advice)
    assert tricks.on == ["cyclical", "label_smoothing"]
    assert tricks.cyclical == hp.Cyclical(shape="triangular")
    assert why["mixup"] == "turned off"
    assert why["label_smoothing"] == "asked for"
    assert why["transfer"] == "not asked for"
    assert set(why) == set(KINDS)


def test_a_setting_given_changes_the_recommended_trick_alone() -> None:
    tricks, _ = choice("recommended", {"label_smoothing": {"eps": 0.3}}).resolve(recommend(epochs=4))
    assert tricks.label_smoothing == hp.LabelSmoothing(eps=0.3, optional=True)
    assert tricks.cyclical == recommend(epochs=4)[0].cyclical


def test_settings_need_data_and_refuse_values_out_of_range() -> None:
    with pytest.raises(InputError, match="--data"):
        Settings()
    for bad in ({"epochs": 0.0}, {"batch_size": 0}, {"target": 1.5}, {"clip_norm": 0.0}, {"augment": "flop"}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(bad))):
            Settings(data="digits", **bad)
