"""``heptane train --plan-workers``: the predicted speed-up of more workers."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import pytest
import torch

import heptane as hp
from heptane.cli import main
from heptane.core.fit_options import Plan
from heptane.recommend.workers import plan_workers

FAST = ["train", "--data", "digits", "--model", "mlp", "--epochs", "2", "--batch-size", "120", "--lr", "0.1"]


def rows(printed: str) -> list[list[str]]:
    return [line.split() for line in printed.splitlines() if re.match(r" +\d+ +\d+ ", line)]


def test_prints_a_row_per_number_with_batch_rate_and_efficiency_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FAST, "--plan-workers", "1,2,8", "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr().out
    table = rows(printed)
    assert [(row[0], row[1], row[2], row[3]) for row in table] == [
        ("1", "1", "120", "0.1"),
        ("2", "2", "240", "0.2"),
        ("8", "8", "960", "0.8"),
    ]
    assert table[0][-1] == "100%"
    assert "10 Gbit/s and 50 us" in printed
    assert "linear rule" in printed
    assert not (tmp_path / "run").exists()


def test_a_slower_link_is_less_efficient_and_more_workers_on_a_host_need_fewer_hosts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*FAST, "--plan-workers", "8", "--plan-bandwidth", "0.001"]) == 0
    slow = rows(capsys.readouterr().out)[0]
    assert int(slow[-1].rstrip("%")) < 20
    assert main([*FAST, "--plan-workers", "8", "--plan-per-host", "8"]) == 0
    assert rows(capsys.readouterr().out)[0][1] == "1"


def test_the_adam_family_goes_by_the_square_root(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--optimizer", "adamw", "--plan-workers", "4"]) == 0
    printed = capsys.readouterr().out
    assert rows(printed)[0][3] == "0.2"
    assert "sqrt rule" in printed


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--plan-workers", "0"], "plan-workers"),
        (["--plan-workers", "2,many"], "many"),
        (["--plan-workers", "2", "--plan-bandwidth", "0"], "plan-bandwidth"),
        (["--plan-workers", "2", "--plan-latency", "-1"], "plan-latency"),
        (["--plan-workers", "2", "--plan-per-host", "0"], "plan-per-host"),
    ],
)
def test_refusals_in_one_line(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, *flags]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert "Traceback" not in printed


def test_the_model_is_left_as_it_was_and_frozen_layers_send_nothing() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
    model[0].requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    data = torch.randn(64, 4), torch.randint(0, 2, (64,))
    sgd = partial(torch.optim.SGD, lr=0.1)
    how = Plan(optimizer=sgd, epochs=1, batch_size=32)
    _, cost, _ = plan_workers(model, data, [2], how=how)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(cost.buckets) == 4 * (8 + 8 + 16 + 2)
    with pytest.raises(hp.InputError, match="plan-workers"):
        plan_workers(model, data, [], how=how)
