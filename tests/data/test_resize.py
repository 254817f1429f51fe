"""Progressive resizing: image sizes by step, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import assert_equal_weights, by_hand, fit, sgd, shuffled
from torch import nn

import heptane as hp
from heptane.cli import main
from heptane.data.resize import resized

IMAGES, LABELS = torch.randn(40, 1, 12, 12), torch.arange(40) % 3


class Seen(nn.Module):
    """A network of any image size that keeps the sizes it was shown, in training and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 3)
        self.trained: list[int] = []
        self.evaluated: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (self.trained if self.training else self.evaluated).append(x.shape[-1])
        out: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
        return out


def fit_resized(model: nn.Module, **settings: Any) -> hp.Result:
    chosen = {"batch_size": 10, "resize": hp.ProgressiveResize(size=8, until=0.6)}
    return fit(model, (IMAGES, LABELS), (IMAGES, LABELS), **{**chosen, **settings})


def test_small_for_the_first_part_of_the_steps_then_whole_and_evaluated_whole() -> None:
    model = Seen()
    fit_resized(model)
    assert model.trained == [8] * 5 + [12] * 3
    assert set(model.evaluated[1:]) == {12}  # the first was to see whether it takes small ones


def test_equals_a_loop_by_hand() -> None:
    ours, theirs = Seen(), Seen()
    theirs.load_state_dict(ours.state_dict())
    fit_resized(ours, weights="last")
    batches = list(shuffled((IMAGES, LABELS), 10, epochs=2))
    small = [(nn.functional.interpolate(x, size=(8, 8), mode="bilinear", antialias=True), y) for x, y in batches[:5]]
    assert_equal_weights(ours, by_hand(theirs, small + batches[5:]))


def test_with_micro_batches_mixup_and_channels_last_and_a_loader() -> None:
    tricks = hp.Tricks(mixup=hp.Mixup(), mixed_precision=hp.MixedPrecision(dtype="fp32", channels_last="on"))
    whole, parts = Seen(), Seen()
    parts.load_state_dict(whole.state_dict())
    fit_resized(whole, tricks=tricks)
    fit_resized(parts, tricks=tricks, accumulate=2)
    assert parts.trained == [8] * 10 + [12] * 6
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    loaded = Seen()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(IMAGES, LABELS), batch_size=10)
    hp.fit(loaded, loader, optimizer=sgd, epochs=1, resize=hp.ProgressiveResize(size=6, until=0.5))
    assert loaded.trained == [6, 6, 12, 12]


def test_goes_on_at_the_size_of_its_step(tmp_path: Path) -> None:
    torch.manual_seed(1)
    straight, stopped = Seen(), Seen()
    stopped.load_state_dict(straight.state_dict())
    fit_resized(straight)
    fit_resized(stopped, run_dir=tmp_path / "run", max_seconds=1e-9)
    again = Seen()
    fit_resized(again, run_dir=tmp_path / "run", resume=True)
    assert again.trained[0] == 8
    assert_equal_weights(straight, again)


def test_a_constant_image_stays_what_it_was() -> None:
    torch.testing.assert_close(resized(torch.full((1, 1, 28, 28), 0.5), 20), torch.full((1, 1, 20, 20), 0.5))


@pytest.mark.parametrize("settings", [{"size": 0}, {"size": 2.5}, {"size": 4, "until": 0}, {"size": 4, "until": 1.0}])
def test_refused_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(hp.InputError, match="ProgressiveResize"):
        hp.ProgressiveResize(**settings)


def test_refused_where_it_cannot_be() -> None:
    with pytest.raises(hp.InputError, match="12x12"):
        fit_resized(Seen(), resize=hp.ProgressiveResize(size=12))
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(hp.InputError, match=r"does not take images of 8x8.*mean over the image"):
        fit_resized(fixed)
    with pytest.raises(hp.InputError, match="images"):
        hp.fit(nn.Linear(4, 2), (torch.randn(8, 4), torch.zeros(8).long()), optimizer=sgd, epochs=1, batch_size=4,
               resize=hp.ProgressiveResize(size=2))  # fmt: skip


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fast = ["train", "--data", "digits", "--model", "resnet", "--epochs", "0.1", "--tricks", "none", "--out"]
    assert main([*fast, str(tmp_path / "a"), "--progressive-size", "6", "--progressive-until", "0.5"]) == 0
    assert "progressive_size = 6" in (tmp_path / "a" / "settings.toml").read_text()
    assert main([*fast, str(tmp_path / "b"), "--progressive-size", "8"]) == 2
    assert "ProgressiveResize.size=8" in capsys.readouterr().err
