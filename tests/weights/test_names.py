"""Parameter names that differ by a prefix: which prefixes are tried, and which pair wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from heptane import load_weights
from heptane.pretrained.weights.names import abbreviate, pair_names, prefixes, printable


def body(prefix: str = "") -> nn.Module:
    torch.manual_seed(5)
    model: nn.Module = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 2))
    for name in reversed(prefix.split(".")[:-1]):
        model = nn.ModuleDict({name: model})
    return model


@pytest.mark.parametrize(("held", "wanted"), [
    ("bert.", ""), ("", "vit."), ("encoder.", "backbone."), ("base_model.model.", ""), ("a.b.c.", "d.e."),
    ("bert.", "bert.x."),
])  # fmt: skip
def test_any_prefix_up_to_three_deep_is_translated_on_either_side(tmp_path: Path, held: str, wanted: str) -> None:
    source, model = body(held), body(wanted)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors", min_match=1.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))
    assert f"names translated: {held or '(none)'} -> {wanted or '(none)'}" in str(report)


def test_a_body_with_another_head_gets_its_prefix(tmp_path: Path) -> None:
    save_file(
        {f"bert.{n}": t for n, t in body().state_dict().items()} | {"cls.bias": torch.ones(9)}, tmp_path / "w.safetensors"
    )
    model = nn.ModuleDict({"encoder": body(), "head": nn.Linear(2, 3)})
    report = load_weights(model, tmp_path / "w.safetensors")
    assert (report.prefix, report.unexpected, report.missing) == (
        "bert. -> encoder.",
        ("cls.bias",),
        ("head.weight", "head.bias"),
    )


def test_four_deep_is_too_deep(tmp_path: Path) -> None:
    save_file(body("a.b.c.d.").state_dict(), tmp_path / "w.safetensors")
    assert load_weights(body(), tmp_path / "w.safetensors", min_match=0).matched == ()


def test_a_prefix_is_shared_by_at_least_half() -> None:
    assert prefixes(["a.x", "a.y", "b.x", "b.y"]) == ["", "a.", "b."]
    assert prefixes(["a.x", "b.x", "c.x"]) == [""]
    assert prefixes(["module.x", "b.x", "c.x", "module.model.x"]) == ["", "module.", "module.model."]
    assert prefixes([]) == [""]
    assert prefixes(["a.b.c.d.e"]) == ["", "a.", "a.b.", "a.b.c."]


def test_a_translation_that_fits_no_more_than_the_names_as_they_are_is_not_made() -> None:
    names = ["a.x", "a.y"]
    assert pair_names(names, names, lambda *two: 1) == ({"a.x": "a.x", "a.y": "a.y"}, ("", ""))
    assert pair_names(["a.a.x", "a.x"], ["a.x"], lambda *two: 1)[1] == ("", "")


def test_shapes_decide_between_two_prefixes() -> None:
    sizes = {"old.w": 1, "new.w": 7}
    pairs, chosen = pair_names(sizes, ["w"], lambda name, other: sizes[other])
    assert (pairs, chosen) == ({"w": "new.w"}, ("new.", ""))


def test_the_order_of_the_names_changes_nothing() -> None:
    names = ["b.w", "a.w", "b.v", "a.v"]
    found = [pair_names(order, ["w", "v"], lambda *two: 1) for order in (names, names[::-1], sorted(names))]
    assert all(pairs == found[0] for pairs in found)


def test_names_in_messages_are_short_and_on_one_line() -> None:
    assert printable("a\nb") == r"'a\nb'"
    assert len(printable("x" * 1000)) == 120
    assert abbreviate(["a", "b\r", "c"], 2) == r"a, 'b\r' and 1 more"
