"""``heptane demo``: sized to the machine, and never ends with an error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from heptane.cli import main
from heptane.cli.demonstration import course as courses
from heptane.cli.demonstration import demo as show
from heptane.cli.demonstration.course import COURSES, SEEDS, DemoRace, Speed, measure, num_seeds
from heptane.cli.demonstration.pictures import Trained, compared, read_trained, write_pictures
from heptane.cli.demonstration.show import _trained
from heptane.data import Data
from heptane.data.dataset import DataUnavailable

FAST, SLOW = Speed(0.002, 2e-5), Speed(0.012, 1e-4)


def images(name: str, size: int, counts: tuple[int, ...] = (200, 100, 60)) -> Data:
    """Clothes that a model tells apart at once: each class has a row of light at a place of its own."""
    random = torch.Generator().manual_seed(0)
    parts = []
    for count in counts:
        labels = torch.arange(count) % 10
        x = 0.1 * torch.rand(count, 1, size, size, generator=random)
        for index, label in enumerate(labels.tolist()):
            x[index, 0, label * size // 10] = 1.0
        parts.append(((x - 0.2) / 0.3, labels))
    names = tuple(f"T-shirt/top {n}" for n in range(10))
    return Data(name, *parts, 10, names, ("a note",), "a test", (0.2,), (0.3,), kind="images")


@pytest.mark.parametrize("course", COURSES.values(), ids=COURSES)
def test_time_becomes_seeds(course: DemoRace) -> None:
    each = course.seconds(SLOW)
    assert num_seeds(course, 0.1 * each, SLOW) == num_seeds(course, 3.1 * each, SLOW) == SEEDS
    assert num_seeds(course, 4.1 * each, SLOW) == 4
    assert num_seeds(course, 99 * each, SLOW) == courses.MOST_SEEDS
    assert num_seeds(course, 4.1 * each, FAST) == courses.MOST_SEEDS  # a faster machine races more


def test_the_race_is_evaluated_at_whole_steps_and_has_enough_to_be_wrong_about() -> None:
    course = COURSES["fashion-mnist"]
    assert course.num_train % (2 * course.batch_size) == 0, "the last evaluation is the end of an epoch"
    assert course.num_valid * (1 - course.target) >= 20, "expected errors, without which there is no verdict"


def test_images_are_reduced_and_few_and_the_speed_is_measured() -> None:
    course, data = replace(COURSES["digits"], num_train=150, num_valid=50, size=14), images("fashion-mnist", 28)
    train, valid = course.parts(data)
    assert train[0].shape == (150, 1, 14, 14)
    assert len(valid[1]) == 50
    speed = measure(course, data)
    assert 0 < speed.sample_seconds < speed.step_seconds


def test_pictures_are_a_folder_of_classes_with_the_pixels_of_the_data(tmp_path: Path) -> None:
    from heptane import load_data

    data = images("fashion-mnist", 28)
    assert write_pictures(data, tmp_path, {"train": 40, "valid": 20, "test": 10}) == {"train": 40, "valid": 20, "test": 10}
    folders = sorted(path.name for path in (tmp_path / "train").iterdir())
    assert folders[0] == "t-shirt-top-0"
    assert len(list((tmp_path / "train" / folders[0]).iterdir())) == 4
    read = load_data(tmp_path)
    assert read.input_shape == (1, 28, 28)
    assert torch.equal(read.train[1].bincount(), torch.full((10,), 4))
    bright = (read.train[0][:, 0] * read.std[0] + read.mean[0]).mean(2)
    assert torch.equal(bright.argmax(1), read.train[1] * 28 // 10), "each class is what it was"


def test_the_two_runs_are_compared_in_a_sentence_whichever_is_better() -> None:
    better, worse = Trained("lite", 0.81, 12.3, Path("demo/a")), Trained("resnet", 0.7, 9.0, Path("demo/b"))
    assert "11.0 points more than" in compared(better, worse, 300)
    assert "11.0 points fewer than" in compared(replace(worse, model="lite"), better, 300)


def test_it_races_trains_and_ends_in_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = DemoRace("fashion-mnist", 128, 100, 8, 0.7, plain_epochs=2, all_epochs=2, limit_epochs=3, width=2, batch_size=32)
    monkeypatch.setattr(courses, "MOST_SEEDS", 3)
    monkeypatch.setattr("heptane.cli.demonstration.show.COURSES", {"fashion-mnist": tiny})
    monkeypatch.setattr("heptane.cli.demonstration.show.load_data", lambda *_, **__: images("fashion-mnist", 28))
    monkeypatch.setattr("heptane.cli.demonstration.show._trained", made)
    monkeypatch.setattr("heptane.cli.demonstration.pictures.PARTS", {"train": 20, "valid": 10, "test": 10})
    assert main(["demo", "--out", str(tmp_path), "--budget", "1h"]) == 0
    printed = capsys.readouterr().out
    assert "ms a step; racing on 128 pictures to 70% validation accuracy, 3 seeds" in printed
    record = json.loads((tmp_path / "race" / "race.json").read_text())
    assert record["plan"]["seeds"] == [0, 1, 2]
    assert [arm["name"] for arm in record["arms"]] == ["plain", "all"]
    assert {effect["trick"] for effect in record["effects"]} == {"cyclical"}
    page = (tmp_path / "index.html").read_text()
    assert record["sentence"] in printed
    for address in ("race/report.html", "pretrained/report.html", "scratch/report.html"):
        assert address in page
    assert (tmp_path / "race" / "report.html").exists()
    assert "points more than the small ResNet from scratch" in page


def made(flags: list[str], out: Path) -> Trained:
    model = "resnet" if "--model" in flags else "lite"
    return Trained(model, 0.8 if model == "lite" else 0.6, 5.0, out)


def test_without_any_data_it_says_so_and_that_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_data(*_: object, **__: object) -> Data:
        raise DataUnavailable("no network")

    monkeypatch.setattr("heptane.cli.demonstration.show.load_data", no_data)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert "nothing to show: connect to a network" in capsys.readouterr().out
    assert (tmp_path / "index.html").exists()


def test_a_race_that_cannot_be_run_and_a_model_that_is_not_trained_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def out_of_memory(*_: object, **__: object) -> str:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr("heptane.cli.demonstration.show.load_data", lambda *_, **__: images("fashion-mnist", 28))
    monkeypatch.setattr("heptane.cli.demonstration.show.measure", lambda *_: SLOW)
    monkeypatch.setattr("heptane.cli.demonstration.show._race", out_of_memory)
    monkeypatch.setattr("heptane.cli.demonstration.show._trained", lambda *_: None)
    said = show(tmp_path, seconds=1)
    assert said == [
        "The race could not be run here: not enough memory",
        "Training on the folder of pictures did not end here.",
    ]
    assert "what does not fit into them is left out" in capsys.readouterr().out
    assert read_trained(tmp_path) is None


def test_training_is_a_process_of_its_own_in_which_a_failure_is_no_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _trained(["--data", str(tmp_path / "nowhere")], tmp_path / "out") is None
    said = capfd.readouterr()
    assert said.out == f"\n$ heptane train --data {tmp_path / 'nowhere'} --out {tmp_path / 'out'} --force\n"
    assert said.err.startswith("heptane: ")
