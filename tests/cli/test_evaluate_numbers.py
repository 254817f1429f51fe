"""``heptane evaluate`` of a regression gives errors in the units of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import heptane as hp
from heptane.cli import main


def write(path: Path, seed: int, rows: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(rows, 3))
    y = 500 + 100 * x[:, 0] - 50 * x[:, 1] + draw.normal(size=rows)
    lines = ["a,b,c,price", *(",".join(f"{value:.6f}" for value in [*row, price]) for row, price in zip(x, y, strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return np.loadtxt(lines[1:], delimiter=",")[:, 3]


def test_errors_are_in_units_of_the_target(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "houses.csv", 0, 120)
    prices = write(tmp_path / "others.csv", 1, 30)
    run = tmp_path / "run"
    assert (
        main(["train", "--data", str(tmp_path / "houses.csv"), "--label", "price", "--out", str(run), "--epochs", "3"]) == 0
    )
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--data", str(tmp_path / "others.csv")]) == 0
    shown = dict(line.rsplit("  ", 1) for line in capsys.readouterr().out.splitlines()[1:])
    predicted = np.array([float(p.value) for p in hp.load_run(run).predict(tmp_path / "others.csv")])
    assert float(shown["mean absolute error"]) == pytest.approx(np.abs(predicted - prices).mean(), rel=5e-3)
    r2 = 1 - ((predicted - prices) ** 2).mean() / prices.var()
    assert float(shown["r2"]) == pytest.approx(r2, abs=6e-3)


def test_an_augmentation_of_images_is_refused_for_a_table_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "houses.csv", 0, 60)
    arguments = ["train", "--data", str(tmp_path / "houses.csv"), "--label", "price", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--augment", "crop"]) == 2
    assert "--augment crop needs images, which houses does not hold: leave it out" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
