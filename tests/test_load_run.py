"""A trained model, loaded from its run: it predicts from raw data, without pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.helpers import TRAIN, VALID, fit, mlp

import heptane as hp
from heptane.cli import main

pytestmark = pytest.mark.usefixtures("undrawn")


def fit_in(model: torch.nn.Module, folder: Path, train: Any = TRAIN, valid: Any = VALID, **settings: Any) -> hp.Result:
    return fit(model, train, valid, run_dir=folder, **settings)


def interrupted(model: torch.nn.Module, folder: Path, at: int = 3, **settings: Any) -> None:
    """A run that stops in its evaluation number ``at``."""
    seen: list[int] = []
    scores = [0.2, 0.7, 0.5, 0.6]

    def f1(_: Any, __: Any) -> float:
        seen.append(1)
        number = len(seen) - 1  # the first call is the trial before training
        if number == at:
            raise KeyboardInterrupt
        return scores[max(number, 1) - 1]

    with pytest.raises(KeyboardInterrupt):
        fit_in(model, folder, metrics={"f1": f1}, target=("valid_f1", 2.0), epochs=4, **settings)


def pictures(root: Path, names: tuple[str, ...], each: int = 10) -> Path:
    """Folders of pictures of one colour each, of odd sizes and modes."""
    colours = {"amber": (250, 180, 0), "blue": (20, 30, 220), "green": (10, 200, 40)}
    random = np.random.default_rng(0)
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(each):
            size = (int(random.integers(20, 40)), int(random.integers(20, 40)), 3)
            pixels = np.clip(random.normal(colours[name], 25, size), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert("RGBA" if index % 3 else "RGB").save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the command line on three folders of pictures, which moves after training: nothing but its folder is left."""
    root = tmp_path_factory.mktemp("pictures")
    data = pictures(root / "data", ("amber", "blue", "green"))
    flags = ["--epochs", "6", "--batch-size", "6", "--image-size", "16", "--model", "resnet", "--tricks", "none"]
    assert main(["train", "--data", str(data), *flags, "--out", str(root / "run")]) == 0
    (root / "run").rename(root / "moved")
    shutil.rmtree(root / "moved" / "checkpoints")
    (root / "moved" / "settings.toml").unlink()
    return root


def test_a_run_of_the_command_line_predicts_from_files(of_pictures: Path) -> None:
    run = hp.load_run(of_pictures / "moved")
    assert run.classes == ("amber", "blue", "green")
    assert not run.model.training
    assert run.metrics == json.loads((of_pictures / "moved" / "result.json").read_text())["metrics"]
    files = [of_pictures / "data" / name / "0.png" for name in run.classes]
    found = run.predict(files, batch_size=2)
    assert [p.label for p in found] == list(run.classes)
    assert [p.name for p in found] == [str(file) for file in files]
    assert all(sum(p.probabilities.values()) == pytest.approx(1, abs=1e-5) for p in found)
    assert next(iter(run.predict(of_pictures / "data" / "blue", top=2)[3].probabilities)) == "blue"
    mixed = [Image.open(files[1]), np.asarray(Image.open(files[2]).convert("RGB")), files[0]]
    assert [p.label for p in run.predict(mixed)] == ["blue", "green", "amber"]


def test_predictions_are_those_of_training(of_pictures: Path) -> None:
    run = hp.load_run(of_pictures / "moved")
    data = hp.load_data(of_pictures / "data", image_size=16)
    assert hp.evaluate(run.model, data.test)["accuracy"] == run.metrics["test_accuracy"]
    assert hp.evaluate(run.model, data.valid)["loss"] == pytest.approx(run.metrics["valid_loss"], rel=1e-5)


def test_a_bad_picture_is_named_or_left_out_on_request(of_pictures: Path, tmp_path: Path) -> None:
    run = hp.load_run(of_pictures / "moved")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [of_pictures / "data" / "blue" / "1.png", tmp_path / "bad.png", of_pictures / "data" / "green" / "1.png"]
    with pytest.raises(hp.InputError, match=r"bad\.png"):
        run.predict(files)
    said: list[str] = []
    assert [p.label for p in run.stream(files, skip_bad=said.append)] == ["blue", "green"]
    assert len(said) == 1
    assert "bad.png" in said[0]


def test_a_run_of_ones_own_model_takes_it_back(tmp_path: Path) -> None:
    result = fit_in(mlp(), tmp_path)
    run = hp.load_run(tmp_path, model=mlp(seed=5))
    assert all(
        torch.equal(a, b) for a, b in zip(run.model.state_dict().values(), result.model.state_dict().values(), strict=True)
    )
    assert run.classes == ("0", "1", "2", "3")
    labels = [int(str(p.label)) for p in run.predict(VALID[0])]
    assert (torch.tensor(labels) == VALID[1]).float().mean() == pytest.approx(result.metrics["valid_accuracy"])
    with pytest.raises(hp.InputError, match=r"from Python with a torch.nn.modules.container.Sequential.*model=\.\.\."):
        hp.load_run(tmp_path)
    with pytest.raises(hp.InputError, match=r"are not of this Sequential: .*1.weight has shape"):
        hp.load_run(tmp_path, model=mlp(num_in=32))
    with pytest.raises(hp.InputError, match="model of type dict"):
        hp.load_run(tmp_path, model={})  # type: ignore[arg-type]


def test_a_swapped_head_an_average_and_a_compiled_wrapper(tmp_path: Path) -> None:
    transfer = hp.Tricks(transfer=hp.Transfer(mode="head"), label_smoothing=hp.LabelSmoothing())
    result = fit_in(mlp(num_classes=7), tmp_path, tricks=transfer, average_decay=0.9)
    run = hp.load_run(tmp_path, model=mlp(num_classes=7))
    assert run.model[-1].out_features == 4
    assert hp.evaluate(run.model, VALID)["accuracy"] == result.metrics["valid_accuracy"]
    wrapped = hp.load_run(tmp_path, model=torch.nn.DataParallel(mlp(num_classes=7)))
    assert wrapped.predict(VALID[0])[0].label == run.predict(VALID[0])[0].label


def test_one_logit_several_labels_and_real_numbers(tmp_path: Path) -> None:
    flat = TRAIN[0].flatten(1)
    one = fit_in(torch.nn.Sequential(torch.nn.Linear(64, 1)), tmp_path / "one", (flat, (TRAIN[1] > 1).float()), None)
    run = hp.load_run(tmp_path / "one", model=torch.nn.Sequential(torch.nn.Linear(64, 1)))
    found = run.predict(flat)
    with torch.no_grad():
        shares = one.model(flat).sigmoid().flatten()
    assert [p.label for p in found] == [str(int(p > 0.5)) for p in shares]
    assert all(float(p.probability or 0) >= 0.5 for p in found)
    several = torch.nn.functional.one_hot(TRAIN[1], 4).float()
    several[:, 0] = 1.0
    fit_in(torch.nn.Sequential(torch.nn.Linear(64, 4)), tmp_path / "several", (flat, several), None, epochs=8)
    run = hp.load_run(tmp_path / "several", model=torch.nn.Sequential(torch.nn.Linear(64, 4)))
    assert {"0"} < set(run.predict(flat)[int((TRAIN[1] == 2).nonzero()[0])].labels)
    fit_in(torch.nn.Sequential(torch.nn.Linear(64, 2)), tmp_path / "real", (flat, flat[:, :2]), None, loss="mse")
    run = hp.load_run(tmp_path / "real", model=torch.nn.Sequential(torch.nn.Linear(64, 2)))
    assert run.classes == ()
    value = run.predict(flat[:1])[0].value
    assert isinstance(value, tuple)
    assert value == pytest.approx(run.model(flat[:1])[0].tolist(), rel=1e-5)


def test_outputs_that_are_not_finite_are_no_class(tmp_path: Path) -> None:
    fit_in(mlp(), tmp_path)
    inputs = VALID[0][:2].clone()
    inputs[0, 0, 0, 0] = float("nan")
    bad, good = hp.load_run(tmp_path, model=mlp()).predict(inputs)
    assert (bad.label, bad.probability) == (None, None)
    assert good.label is not None


def test_a_table_is_prepared_as_in_training_and_values_are_in_its_units(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    size, town = random.uniform(30, 200, 80), random.choice(["Ulm", "Bonn", "Kiel"], 80)
    rent = 300 + 9 * size + 200 * (town == "Kiel")
    lines = [f"{s:.1f},{t},{r:.0f}" for s, t, r in zip(size, town, rent, strict=True)]
    (tmp_path / "rents.csv").write_text("size,town,rent\n" + "\n".join(lines))
    flags = ["--data", str(tmp_path / "rents.csv"), "--label", "rent", "--epochs", "60", "--batch-size", "16"]
    assert main(["train", *flags, "--tricks", "none", "--out", str(tmp_path / "run")]) == 0
    run = hp.load_run(tmp_path / "run")
    found = run.predict([{"town": "Kiel", "size": 100.0, "unknown": 1}, {"town": "Ulm", "size": 50.0}])
    assert [p.value for p in found] == [pytest.approx(1400, rel=0.15), pytest.approx(750, rel=0.2)]
    with pytest.raises(hp.InputError, match="size"):
        run.predict([{"town": "Kiel"}])


def test_an_interrupted_run_gives_its_best_checkpoint_and_says_so(tmp_path: Path) -> None:
    interrupted(mlp(), tmp_path / "run", at=4, average_decay=0.9)
    run = hp.load_run(tmp_path / "run", model=mlp(seed=5))
    assert run.step == 6
    assert run.metrics["valid_f1"] == 0.7
    assert "unfinished run: loaded the weights of step 6, the best evaluation so far (valid_f1 0.7)" in run.notes[-1]
    assert hp.evaluate(run.model, VALID)["loss"] == pytest.approx(run.metrics["valid_loss"], rel=1e-5)
    newest = hp.load_run(tmp_path / "run", model=mlp(), which="newest")
    assert newest.step == 9
    done = fit_in(mlp(), tmp_path / "run", epochs=4, resume=True, average_decay=0.9)
    assert not (tmp_path / "run" / "run.json").exists()
    assert hp.load_run(tmp_path / "run", model=mlp()).step == done.weights_step


def test_adapters_of_an_interrupted_run_are_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    tricks = hp.Tricks(transfer=hp.Transfer(lora_rank=2, lora_alpha=6.0, rate_factor=1.0))
    interrupted(net, tmp_path, tricks=tricks)
    run = hp.load_run(tmp_path, model=mlp(seed=5))
    assert set(run.model.state_dict()) == set(mlp().state_dict())
    assert hp.evaluate(run.model, VALID)["loss"] == pytest.approx(run.metrics["valid_loss"], rel=1e-5)


def test_a_sharded_run_that_was_interrupted(tmp_path: Path, forked: None) -> None:
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy="fsdp"))
    fit_in(mlp(), tmp_path, tricks=tricks)
    (tmp_path / "result.json").rename(tmp_path / "run.json")  # as before its end
    run = hp.load_run(tmp_path, model=mlp(seed=5))
    assert hp.evaluate(run.model, VALID)["loss"] == pytest.approx(run.metrics["valid_loss"], rel=1e-5)


def test_a_factory_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_nets.py").write_text(
        "import torch\ndef build(num_classes):\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--data", "digits", "--model", "my_nets:build", "--epochs", "1", "--tricks", "none", "--out", "run"]
    assert main(["train", *flags]) == 0
    before = torch.random.get_rng_state()
    assert hp.load_run("run").predict(np.zeros((1, 8, 8), np.uint8))[0].label in map(str, range(10))
    assert torch.equal(before, torch.random.get_rng_state())
    record = json.loads(Path("run/result.json").read_text())
    record["model"]["spec"] = "gone_nets:build"
    Path("run/result.json").write_text(json.dumps(record))
    with pytest.raises(hp.InputError, match=r"cannot import 'gone_nets'.*load_run\('run', model=\.\.\.\)"):
        hp.load_run("run")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(hp.InputError, match="no such folder"):
        hp.load_run(tmp_path / "nowhere")
    with pytest.raises(hp.InputError, match="holds no finished run"):
        hp.load_run(tmp_path)
    (tmp_path / "race.json").write_text("{}")
    with pytest.raises(hp.InputError, match="holds a race"):
        hp.load_run(tmp_path)
    fit_in(mlp(), tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(hp.InputError, match=r"model.safetensors cannot be read"):
        hp.load_run(tmp_path / "run", model=mlp())
