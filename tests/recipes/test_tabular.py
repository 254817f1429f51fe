"""The tabular recipe: its split, ridge regression, and its short version."""

from __future__ import annotations

import json

import pytest
import torch

import tabular

pytest.importorskip("sklearn")


def test_a_seed_draws_a_split_in_units_of_its_training_part():
    train, test = tabular.data(0)
    assert [len(part[1]) for part in (train, test)] == [265, 177]
    for values in train:
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1:]), atol=1e-5, rtol=0)
        torch.testing.assert_close(values.std(0), torch.ones(values.shape[1:]), atol=1e-5, rtol=0)
    assert len(torch.cat([train[0], test[0]]).unique(dim=0)) == 442
    assert not torch.equal(train[1], tabular.data(1)[0][1])


def test_ridge_finds_a_straight_line():
    x = torch.randn(200, 10)
    y = x @ torch.arange(10.0)
    errors = tabular.ridge((x[:150], y[:150]), (x[150:], y[150:]))
    assert errors["test RMSE"] < 0.01
    assert errors["training RMSE"] < 0.01


def test_the_short_version_measures_every_arm(tmp_path, capsys):
    tabular.main(["--quick", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "recipe-tabular.json").read_text())
    assert list(found["arms"]) == [*(f"10 epochs, {name}" for name in tabular.ARMS), tabular.RIDGE]
    assert found["seeds"] == [0]
    errors = {arm: values["test RMSE"]["mean"] for arm, values in found["arms"].items()}
    assert all(0.5 < error < 1 for error in errors.values())  # 1 is the error of the training part's mean
    assert len(set(errors.values())) == len(errors)
    assert len(found["verdicts"]) == 3
    assert "ridge regression" in capsys.readouterr().out
