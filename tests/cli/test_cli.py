"""The commands: what they write, their exit codes, and one clear line for each mistake."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from heptane.cli import main
from heptane.cli.tricks import measured, measured_text
from heptane.report import format_metric
from heptane.tricks import KINDS

FAST = ["--data", "digits", "--model", "mlp", "--epochs", "2", "--batch-size", "120"]


def train(out: Path, *flags: str) -> int:
    return main(["train", *FAST, "--out", str(out), *flags])


def result(out: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((out / "result.json").read_text())
    return content


def test_train_writes_what_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run") == 0
    printed = capsys.readouterr()
    for word in ("test accuracy", "validation accuracy", "wall clock", "training time", "CPU time", "report.html"):
        assert word in printed.out
    assert printed.err.count("epoch ") == 2
    record = result(tmp_path / "run")
    assert record["schema"] == 1
    assert set(record["seconds"]) >= {"wall", "train", "cpu"}
    assert set(record["metrics"]) >= {"valid_accuracy", "test_accuracy"}
    assert [trick["name"] for trick in record["tricks"]] == list(KINDS)
    assert record["command"].startswith("heptane train --data digits")
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("epoch") == 2
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "run" / "model.safetensors").stat().st_size > 1000


def test_the_written_settings_repeat_the_run(tmp_path: Path) -> None:
    assert train(tmp_path / "a", "--mixup.alpha", "0.3", "--tricks", "cyclical,label_smoothing", "--seed", "3") == 0
    settings = tmp_path / "a" / "settings.toml"
    content = tomllib.loads(settings.read_text())
    assert content["tricks"] == ["cyclical", "mixup", "label_smoothing"]
    assert content["mixup"]["alpha"] == 0.3
    assert main(["train", "--config", str(settings), "--out", str(tmp_path / "b")]) == 0
    assert result(tmp_path / "a")["history"][-1]["train_loss"] == result(tmp_path / "b")["history"][-1]["train_loss"]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert (tmp_path / "b" / "settings.toml").read_text() == settings.read_text()


def test_a_flag_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'data = "digits"\nmodel = "mlp"\nepochs = 9\ntricks = ["mixup"]\n[mixup]\nalpha = 0.5\n'
    )
    flags = ["--config", str(tmp_path / "s.toml"), "--epochs", "1", "--no-mixup", "--batch-size", "500"]
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 0
    content = tomllib.loads((tmp_path / "run" / "settings.toml").read_text())
    assert content["epochs"] == 1
    assert content["tricks"] == []


def test_resume_needs_nothing_else_and_a_finished_run_stays_as_it_is(tmp_path: Path) -> None:
    assert train(tmp_path / "run") == 0
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_target_decides_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "a", "--target", "0.15") == 0
    assert result(tmp_path / "a")["target"]["reached_seconds"] > 0
    assert train(tmp_path / "b", "--target", "1.0") == 3
    assert result(tmp_path / "b")["target"] == {"metric": "valid_accuracy", "value": 1.0, "reached_seconds": None}
    assert "was not reached" in capsys.readouterr().err


def test_evaluate_repeats_the_runs_own_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run") == 0
    capsys.readouterr()
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    test_accuracy = 100 * result(tmp_path / "run")["metrics"]["test_accuracy"]
    assert f"{test_accuracy:.2f}%" in capsys.readouterr().out
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--data", "digits", "--part", "valid"]) == 0
    assert main(["evaluate", "--run", str(tmp_path)]) == 2


def test_tricks_is_a_table_of_the_seven_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["tricks"]) == 0
    printed = capsys.readouterr().out
    assert printed.split("\n")[0].split() == ["trick", "what", "it", "does", "measured", "not", "when"]
    for name in KINDS:
        assert f"\n{name.replace('_', ' ')} " in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "heptane race" in printed


def test_a_figure_of_the_tricks_names_its_result_file() -> None:
    found = measured()
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    assert set(found["tricks"]) <= set(KINDS)
    assert all((results / row["file"]).exists() for row in found["tricks"].values())
    assert all(any(row["file"] in line for line in found["about"]) for row in found["tricks"].values())
    for step, said in (
        ([1.06, 1.02, 1.11], "a step takes 1.06x as long (1.02x to 1.11x)"),
        ([1.06, 0.98, 1.11], "no cost"),
    ):
        assert measured_text({"tricks": {"mixup": {"step": step, "words": "hurts"}}}, "mixup").startswith(f"hurts; {said}")
    assert measured_text({"tricks": {}}, "mixup") == "not measured"


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    assert "2 epochs of 9 steps" in printed
    assert "1cycle reaches" in printed


def test_rate_is_scaled_to_the_batch_only_where_the_default_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {}
    for batch in ("30", "120"):
        assert train(tmp_path / "run", "--dry-run", "--optimizer", "sgd", "--batch-size", batch) == 0
        rates[batch] = float(re.findall(r"^lr = (.+)$", capsys.readouterr().out, re.M)[0])
    assert rates["120"] == pytest.approx(4 * rates["30"], rel=0.01)
    assert train(tmp_path / "run", "--dry-run", "--lr", "0.2") == 0
    printed = capsys.readouterr().out
    assert "learning rate 0.2" in printed
    assert "lr = 0.2\n" in printed


def image_folder(root: Path) -> Path:
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(12):
            pixels = np.random.default_rng(index).integers(0, 255, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def test_a_folder_of_images_trains_and_evaluates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = image_folder(tmp_path / "data")
    (data / "cat" / "bad.png").write_bytes(b"not an image")
    flags = ["--data", str(data), "--epochs", "1", "--batch-size", "4", "--valid-fraction", "0.2", "--model", "resnet"]
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 2
    assert "bad.png" in capsys.readouterr().err
    assert main(["train", *flags, "--skip-bad", "3", "--out", str(tmp_path / "run")]) == 0
    assert "1 unreadable file(s) were skipped" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--data", str(data), "--skip-bad", "3", "--part", "all"]) == 0
    assert "24 samples" in capsys.readouterr().out


def write_npz(path: Path, **arrays: object) -> str:
    np.savez(path, **arrays)
    return str(path)


X, Y = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32), np.arange(60) % 3


def test_regression_from_an_npz(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "d.npz", x=X, y=X[:, :2].astype(np.float32))
    assert main(["train", "--data", data, "--epochs", "1", "--batch-size", "16", "--out", str(tmp_path / "run")]) == 0
    assert "test_loss" in result(tmp_path / "run")["metrics"] or "valid_loss" in result(tmp_path / "run")["metrics"]
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--part", "valid"]) == 0


def test_amounts_of_an_npz_are_learned_and_predicted_in_their_own_units(tmp_path: Path, capsys) -> None:
    prices = 3e5 + 1e5 * X[:, 0]
    data, run = write_npz(tmp_path / "d.npz", x=X, y=prices, x_valid=X, y_valid=prices), str(tmp_path / "run")
    assert main(["train", "--data", data, "--epochs", "30", "--batch-size", "8", "--out", run]) == 0
    metrics = result(tmp_path / "run")["metrics"]
    assert metrics["valid_loss"] < 0.2  # 1 is as good as the mean
    assert main(["predict", "--run", run, data, "--out", str(tmp_path / "p.json")]) == 0
    values = [row["value"] for row in json.loads((tmp_path / "p.json").read_text())]
    assert np.abs(np.array(values) - prices).mean() < 5e4
    capsys.readouterr()
    for given in ([], ["--data", data]):
        assert main(["evaluate", "--run", run, "--part", "valid", *given]) == 0
        assert format_metric("loss", metrics["valid_loss"], 2) in capsys.readouterr().out


BAD = {
    "no data": ([], "--data"),
    "unknown data": (["--data", "fashion-minst"], "did you mean fashion-mnist"),
    "missing folder": (["--data", "no/such/folder"], "no/such/folder"),
    "unknown model": (["--data", "digits", "--model", "resnt"], "did you mean resnet"),
    "unknown factory": (["--data", "digits", "--model", "no_such_module:build"], "no_such_module"),
    "unknown trick": (["--data", "digits", "--tricks", "mixap"], "did you mean mixup"),
    "unknown optimizer": (["--data", "digits", "--optimizer", "adamm"], "did you mean adam"),
    "unknown flag": (["--data", "digits", "--epoch", "3"], "did you mean --epochs"),
    "unknown trick flag": (["--data", "digits", "--mixup.alpa", "3"], "did you mean --mixup.alpha"),
    "unknown command": (None, "command='trian' is not known (did you mean train?)"),
    "batch too large": (["--data", "digits", "--batch-size", "9999"], "batch_size=9999"),
    "batch of zero": (["--data", "digits", "--batch-size", "0"], "batch_size=0"),
    "epochs of nothing": (["--data", "digits", "--epochs", "0"], "epochs=0"),
    "not a number": (["--data", "digits", "--epochs", "many"], "'many'"),
    "lr negative": (["--data", "digits", "--lr", "-1"], "lr=-1"),
    "lr nan": (["--data", "digits", "--lr", "nan"], "lr=nan"),
    "alpha out of range": (["--data", "digits", "--mixup.alpha", "-1"], "Mixup.alpha=-1"),
    "smoothing out of range": (["--data", "digits", "--label-smoothing.eps", "1.5"], "LabelSmoothing.eps=1.5"),
    "target out of range": (["--data", "digits", "--target", "92"], "target=92.0 is out of range (did you mean 0.92?)"),
    "exclude each other": (["--data", "digits", "--lr-scaling.warmup-epochs", "1"], "1cycle already warms up"),
    "set and turned off": (["--data", "digits", "--mixup.alpha", "1", "--no-mixup"], "contradict"),
    "momentum for adam": (["--data", "digits", "--optimizer", "adamw", "--momentum", "0.9"], "momentum"),
    "fp16 on a cpu": (["--data", "digits", "--mixed-precision.dtype", "fp16", "--device", "cpu"], "GFLOP/s"),
    "no such weights": (["--data", "digits", "--transfer.weights", "no.safetensors"], "no.safetensors"),
    "no such config": (["--config", "no.toml"], "no.toml"),
    "resume of nothing": (["--resume", "no_run"], "no_run"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_2(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, said = BAD[name]
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    arguments = ["trian"] if flags is None else ["train", *flags]
    assert main([*arguments, *([] if "--resume" in arguments else ["--out", str(out)])]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("heptane:")]
    assert len(lines) == 1
    assert said in lines[0]
    assert not out.exists()


BAD_ARRAYS = {
    "nan": ({"x": np.where(X > 2, np.nan, X), "y": Y}, "NaN"),
    "infinite": ({"x": np.where(X > 2, np.inf, X), "y": Y}, "inf"),
    "negative label": ({"x": X, "y": Y - 1}, "label"),
    "unequal": ({"x": X, "y": Y[:-1]}, "59"),
    "empty": ({"x": X[:0], "y": Y[:0]}, "no samples|empty|0 samples"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_one_line_and_2(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, said = BAD_ARRAYS[name]
    data = write_npz(tmp_path / "d.npz", **arrays)
    assert main(["train", "--data", data, "--epochs", "1", "--batch-size", "8", "--out", str(tmp_path / "run")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert re.search(said, lines[0])
    assert not (tmp_path / "run").exists()


def test_a_config_with_mistakes_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in (
        ("data = 'digits'\nepoch = 3", "did you mean epochs"),
        ("data = 'digits'\n[mixup]\nalpa = 3", "did you mean alpha"),
        ("data = 'digits'\nmixup = 3", "expected a table"),
        ("data = 'digits'\nepochs = 'many'", "'many'"),
        ("data = ", "not TOML"),
    ):
        (tmp_path / "s.toml").write_text(text)
        assert main(["train", "--config", str(tmp_path / "s.toml"), "--out", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err


def test_a_run_is_never_overwritten_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train(out) == 0
    (out / "notes.txt").write_text("mine")
    before = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert train(out) == 2
    assert "--force" in capsys.readouterr().err
    assert train(out, "--force", "--batch-size", "99999") == 2  # wrong input: the old run is still there
    assert {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} == before
    assert train(out, "--force") == 0
    assert (out / "notes.txt").read_text() == "mine"


def test_out_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").write_text("mine")
    assert train(tmp_path / "run" / "deeper") == 2
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_out_without_the_right_to_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert train(tmp_path / "run") == 2


def test_out_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert train(tmp_path / "run") == 2
    assert "1 MiB free" in capsys.readouterr().err


def test_an_interrupted_run_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = tmp_path / "run", tmp_path / "plain"
    assert train(plain, "--epochs", "3", "--tricks", "cyclical,mixup") == 0
    from heptane.session.recorder import Recorder

    record, calls = Recorder._record, []

    def interrupting(self: Recorder, event: object) -> None:
        record(self, event)
        calls.append(event)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "_record", interrupting)
        assert train(out, "--epochs", "3", "--tricks", "cyclical,mixup") == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"heptane train --resume {out}")
    assert main(said.split("go on with: heptane ")[1].split()) == 0
    assert (out / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    drop = ("train_seconds", "evaluate_seconds")
    histories = [[{k: v for k, v in r.items() if k not in drop} for r in result(f)["history"]] for f in (out, plain)]
    assert histories[0] == histories[1]


def test_divergence_is_one_line_and_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_npz(tmp_path / "d.npz", x=X, y=10 * X[:, 0])
    flags = ["--data", data, "--lr", "1e5", "--epochs", "40", "--batch-size", "8", "--tricks", "none"]
    assert main(["train", *flags, "--out", str(tmp_path / "run")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("heptane: training failed: 10 steps in a row, the first at step ")


def test_help_needs_no_torch() -> None:
    code = "import sys; from heptane.cli import main\ntry: main(['train', '--help-all'])\nexcept SystemExit: pass\n"
    code += "print('loaded', 'torch._C' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded False" in done.stderr
    for name in KINDS:
        assert f"--no-{name.replace('_', '-')}" in done.stdout
    assert "--mixup.alpha" in done.stdout


@pytest.mark.usefixtures("forked")
def test_two_workers_give_the_same_run(tmp_path: Path) -> None:
    flags = ["--tricks", "cyclical", "--mixed-precision.dtype", "fp32", "--mixed-precision.channels-last", "off"]
    assert train(tmp_path / "one", *flags) == 0
    assert train(tmp_path / "two", *flags, "--workers", "2") == 0
    one, two = result(tmp_path / "one"), result(tmp_path / "two")
    assert two["settings"]["workers"] == 2
    assert torch.isclose(
        torch.tensor(one["history"][-1]["valid_loss"]), torch.tensor(two["history"][-1]["valid_loss"]), atol=1e-5
    )


def test_the_data_folder_is_no_place_for_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for out in ("data", "data/run", "data/../data"):
        assert main(["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / out)]) == 2
        assert "is in the data folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cat"]


def test_resume_takes_no_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--resume", str(tmp_path), "--force"]) == 2
    assert "leave out other flags" in capsys.readouterr().err


def test_a_fifo_is_no_settings_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "settings.toml")
    assert main(["train", "--resume", str(tmp_path)]) == 2
    assert "is no file: expected a TOML file of settings" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT"])
def test_a_signal_before_training_ends_with_130(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heptane.cli.loading.load", lambda *_, **__: os.kill(os.getpid(), getattr(signal, name)))
    assert main(["train", "--data", "digits", "--out", str(tmp_path / "run")]) == 130
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr("heptane.cli.loading.load", full)
    assert main(["train", "--data", "digits", "--out", str(tmp_path / "run")]) == 1
    assert (
        capsys.readouterr().err == "heptane: somewhere: No space left on device: free disk space, or choose another folder\n"
    )
