"""``heptane layers``: its table matches what a run uses."""

from __future__ import annotations

import json
from typing import Any

import pytest

from heptane.cli import main


def shown(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    assert main(["layers", "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_groups_parameters_rates_and_freezing(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    found = shown(
        capsys,
        *("--model", "mlp", "--data", "digits", "--lr", "0.26", "--batch-size", "359", "--epochs", "3"),
        *("--transfer.freeze", "-1", "--transfer.unfreeze-every-epochs", "2"),
    )
    assert (found["model"], found["by"]) == ("mlp", "order of use")
    assert found["groups"] == [
        {"group": "hidden", "parameters": 4160, "rate": pytest.approx(0.1), "frozen_until_epoch": 2.0},
        {"group": "head", "parameters": 650, "rate": pytest.approx(0.26), "frozen_until_epoch": 0.0},
    ]


def test_without_data_a_model_sees_blank_images_and_a_list_is_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--model", "resnet", "--image-size", "16", "--transfer.groups", "stem, down*,block*", "--transfer.freeze", "1"]
    found = shown(capsys, *flags)
    assert found["by"] == "your list"
    assert [(row["group"], row["frozen_until_epoch"]) for row in found["groups"]] == [
        *(("stem", None), ("down*", 0.0), ("block*", 0.0), ("head", 0.0)),
    ]
    assert main(["layers", *flags]) == 0
    printed = capsys.readouterr().out
    assert "resnet: 4 layer groups from input to output, grouped by your list" in printed
    assert "never trains" in printed


def test_a_list_that_does_not_fit_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["layers", "--model", "resnet", "--image-size", "16", "--transfer.groups", "stm,down*"]) == 2
    assert capsys.readouterr().err == "heptane: groups: 'stm' matches none of the model's names (did you mean stem?)\n"
