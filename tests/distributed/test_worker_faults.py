"""What goes wrong with several workers and nobody notices: each is right, or one clear error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.workers import launch
from torch import nn
from torch.nn.utils import parametrizations

import heptane as hp
from heptane.distributed.heartbeat import of_connection
from heptane.distributed.workers import Worker, check_environment, this_worker

SGD = lambda params: torch.optim.SGD(params, lr=0.1)  # noqa: E731 - a factory
TWO = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
HERE = hp.Tricks(data_parallel=hp.DataParallel())


def pair(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(5)
    return torch.randn(count, 4, generator=draws), torch.randint(0, 3, (count,), generator=draws)


def fit(model: Any, data: Any = None, valid: Any = None, **more: Any) -> hp.Result:
    return hp.fit(model, data or pair(), valid, **{"optimizer": SGD, "epochs": 1, "batch_size": 16, "tricks": TWO} | more)


# Row 31: what the model's own loss is a mean over


class Language(nn.Module):
    """A causal language model: its loss leaves out the first label of each row, and those that are -100."""

    def __init__(self, shifts: bool = True, penalty: float = 0.0) -> None:
        super().__init__()
        self.embed, self.out, self.shifts, self.penalty = nn.Embedding(11, 8), nn.Linear(8, 11), shifts, penalty

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.out(self.embed(input_ids).cumsum(1))
        if labels is None:
            return {"logits": logits}
        scores, truth = (logits[:, :-1], labels[:, 1:]) if self.shifts else (logits, labels)
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), truth.flatten()) + self.penalty
        return Answer(loss=loss, logits=logits)


class Answer(dict[str, Any]):
    """As transformers answer."""

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())


def tokens(padded: bool = True) -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 11, (32, 6), generator=draws)
    lengths = torch.randint(1, 7, (32, 1), generator=draws)
    return {"input_ids": ids, "labels": torch.where(torch.arange(6) < lengths, ids, -100) if padded else ids.clone()}


def language(**kind: Any) -> Language:
    torch.manual_seed(0)
    return Language(**kind)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("shifts", [True, False])
def test_a_language_models_own_loss_is_the_same_over_workers_and_micro_batches(shifts: bool) -> None:
    settings: dict[str, Any] = {"loss": "model", "epochs": 2, "batch_size": 8}
    models = [language(shifts=shifts) for _ in range(3)]
    fit(models[0], tokens(), tricks=hp.Tricks(), **settings)
    fit(models[1], tokens(), tricks=TWO, **settings)
    fit(models[2], tokens(), tricks=hp.Tricks(), accumulate=3, **settings)
    for other in models[1:]:
        torch.testing.assert_close(other.state_dict(), models[0].state_dict(), atol=1e-5, rtol=0)
    losses = {round(hp.evaluate(models[0], tokens(), loss="model", batch_size=size)["loss"], 5) for size in (3, 8, 32)}
    assert len(losses) == 1


def test_transformers_gpt2_is_counted_as_it_counts() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, n_positions=8)
    model = transformers.GPT2LMHeadModel(config)
    losses = {round(hp.evaluate(model, tokens(), loss="model", batch_size=size)["loss"], 5) for size in (3, 8, 32)}
    assert len(losses) == 1


def test_a_mean_over_nobody_knows_what_is_refused_in_parts() -> None:
    with pytest.raises(hp.InputError, match="what the model's mean is over cannot be told"):
        fit(language(penalty=1.0), tokens(), tricks=hp.Tricks(), loss="model", accumulate=2)
    fit(language(penalty=1.0), tokens(), tricks=hp.Tricks(), loss="model")
    fit(language(penalty=1.0), tokens(padded=False), tricks=hp.Tricks(), loss="model", accumulate=2)


# Row 35: a loss of the user's that is no mean over samples


def masked(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    known = targets > -1
    return ((output - targets) ** 2)[known].mean()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_mean_over_unmasked_positions_is_noticed_where_a_batch_is_split(accumulate: int) -> None:
    targets = pair()[0].clamp(-0.99, 1)
    targets[::2, :3] = -1
    result = fit(nn.Linear(4, 4), (pair()[0], targets), tricks=hp.Tricks(), loss=masked, accumulate=accumulate)
    assert any("not a mean over samples" in note for note in result.notes) == (accumulate > 1)
    plain = fit(nn.Linear(4, 4), (pair()[0], pair()[0]), tricks=hp.Tricks(), loss=nn.HuberLoss(), accumulate=accumulate)
    assert not any("not a mean" in note for note in plain.notes)


# Row 36: the parent is killed


KILLED = """
import torch, heptane as hp
data = torch.randn(4096, 64), torch.randint(0, 3, (4096,))
net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 3))
tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
hp.fit(net, data, optimizer=torch.optim.SGD, epochs=100000, batch_size=8, tricks=tricks, run_dir="RUN", checkpoint_every=20)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    run, temporary = tmp_path / "run", tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED.replace("RUN", str(run))], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        assert _within(120, lambda: any((run / "checkpoints").glob("step-*")))
        workers = _children(parent.pid)
        assert len(workers) >= 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _within(20, lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert not list(temporary.glob("heptane-*"))
    assert not (run / "result.json").exists()


def _children(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def _within(seconds: float, condition: Any) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.2)
    return False


# Row 37: decisions from files are rank 0's


def two_fits_one_late(folder: str) -> list[int]:
    os.environ["TORCHELASTIC_RUN_ID"] = "job-1"
    steps = []
    for name in ("a", "b"):
        if this_worker().rank or os.environ["RANK"] == "1":
            time.sleep(1.0)  # rank 0 has made its folder by now
        result = fit(seeded(0), tricks=HERE, run_dir=f"{folder}/{name}")
        steps.append(result.steps["applied"])
    return steps


def seeded(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(4, 3)


def test_two_runs_in_one_job_do_not_wait_for_each_other(tmp_path: Path) -> None:
    assert launch(two_fits_one_late, {"folder": str(tmp_path)}, 2) == [4, 4]


def refused_folder(folder: str) -> str:
    try:
        fit(seeded(0), tricks=HERE, run_dir=folder)
    except hp.InputError as error:
        return str(error)
    return ""


def test_a_folder_that_is_refused_is_refused_on_all_workers(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{}")
    assert "already holds a run" in launch(refused_folder, {"folder": str(tmp_path)}, 2)


# Row 39: who failed, by type and origin


class Timed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and os.environ.get("RANK") == "1":
            raise RuntimeError("nccl timeout, connection reset by peer: my own words")
        return super().forward(x)


@pytest.mark.usefixtures("forked")
def test_a_models_error_is_its_own_whatever_its_words() -> None:
    with pytest.raises(RuntimeError, match=r"worker 1 of 2 failed with RuntimeError: nccl timeout"):
        fit(Timed(4, 3))


def test_errors_are_told_apart_by_where_they_were_raised() -> None:
    def raised(make: Any) -> BaseException:
        try:
            make()
        except Exception as error:
            return error
        raise AssertionError

    def own() -> None:
        raise RuntimeError("gloo: connection closed by peer")

    assert not of_connection(raised(own))
    assert not of_connection(raised(lambda: torch.zeros(2) @ torch.zeros(3)))
    assert of_connection(raised(lambda: (_ for _ in ()).throw(torch.distributed.DistNetworkError("broken pipe"))))


# Row 40: models that were built without a seed


def unseeded() -> dict[str, torch.Tensor]:
    model = nn.Sequential(seeded(int(os.environ["RANK"])), nn.BatchNorm1d(3))  # as processes that do not seed build it
    fit(model, tricks=HERE)
    return model.state_dict()


def test_models_that_differ_between_workers_start_as_rank_0s() -> None:
    found = launch(unseeded, {}, 2)
    plain = nn.Sequential(seeded(0), nn.BatchNorm1d(3))
    launched = launch(lambda: fit(plain, tricks=HERE).model.state_dict(), {}, 2)
    torch.testing.assert_close(found, launched, atol=0, rtol=0)


def lazy() -> list[float]:
    torch.manual_seed(int(os.environ["RANK"]))
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(3))
    held: list[int] = []

    def optimizer(params: Any) -> torch.optim.Optimizer:
        params = list(params)
        held.extend(p.numel() for p in params)
        return SGD(params)

    fit(model, tricks=HERE, optimizer=optimizer)
    return [float(sum(held)), float(sum(p.detach().double().sum() for p in model.parameters()))]


def test_lazy_layers_of_processes_that_do_not_seed_are_real_and_alike_before_the_optimizer_is_made() -> None:
    count, total = launch(lazy, {}, 2)  # copies that differ are an error
    assert count == 4 * 5 + 5 + 5 * 3 + 3
    assert torch.isfinite(torch.tensor(total))


def different() -> str:
    try:
        fit(nn.Linear(4, 3 + int(os.environ["RANK"])), tricks=HERE)
    except hp.InputError as error:
        return str(error)
    return ""


def test_models_of_two_kinds_are_refused() -> None:
    assert "build the same in each" in launch(different, {}, 2)


# Row 42: what a model holds beside its weights


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.calls, self.history, self.extra = 0, [0.0], {"steps": 0}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen += 1
            self.calls += 1
            self.history.append(float(self.calls))
            self.extra["steps"] += 1
        return self.linear(x)

    def get_extra_state(self) -> Any:
        return dict(self.extra)

    def set_extra_state(self, state: Any) -> None:
        self.extra = dict(state)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_buffers_that_no_file_has_and_plain_attributes_come_back(strategy: str) -> None:
    model = Counting()
    fit(model, tricks=hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy=strategy)))
    assert (model.calls, float(model.seen), model.extra, len(model.history)) == (4, 4.0, {"steps": 4}, 5)


# Row 43: layers of all kinds; what a launcher left behind


LAYERS: dict[str, Any] = {
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 3)),
    "a 16-bit integer buffer": lambda: with_buffer(torch.zeros(2, dtype=torch.int16)),
    "a bool buffer": lambda: with_buffer(torch.ones(2, dtype=torch.bool)),
    "a lazy layer": lambda: nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.Linear(5, 3)),
}


def with_buffer(buffer: torch.Tensor) -> nn.Module:
    model = nn.Linear(4, 3)
    model.register_buffer("held", buffer)
    return model


class Depth(nn.Module):
    """Leaves a layer out by chance, another one on each worker: then its gradient is missing on some."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or torch.rand(()) < 0.5:
            x = x + self.inner(x)
        return self.out(x)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_all_kinds_train_on_two_workers(name: str) -> None:
    model = LAYERS[name]()
    result = fit(model, valid=pair())
    assert result.steps["applied"] == 4
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.usefixtures("forked")
def test_layers_that_are_left_out_at_random_need_to_be_looked_for() -> None:
    with pytest.raises(hp.InputError, match=r"pass DataParallel\(find_unused=True\)"):
        fit(Depth(), epochs=3)
    model = Depth()
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2, find_unused=True))
    assert fit(model, epochs=3, tricks=tricks).steps["applied"] == 12


@pytest.mark.parametrize(
    ("left", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR, MASTER_PORT not set"),
        ({"RANK": "one", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK cannot be"),
        ({"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}, "RANK cannot be"),
    ],
)
def test_what_a_launcher_left_in_the_environment_is_one_clear_error(
    left: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(hp.InputError, match=f"{message}.*unset them"):
        fit(nn.Linear(4, 3), tricks=HERE)


def test_workers_that_nobody_started_are_not_waited_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511"}.items():
        monkeypatch.setenv(name, value)
    assert check_environment(600.0) <= 60.0
    assert check_environment(5.0) == 5.0
    tricks = hp.Tricks(data_parallel=hp.DataParallel(timeout_seconds=1.0))
    with pytest.raises(hp.InputError, match=r"other workers were not found.*RANK=0, WORLD_SIZE=2.*unset them"):
        fit(nn.Linear(4, 3), tricks=tricks)
    assert this_worker() == Worker()


# Rows 32, 33, 41: metrics of the user's own


class Own:
    """A metric with its own state, which is no torchmetrics: the largest logit that was seen, and how many samples."""

    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.total, self.seen = 0.0, 0

    def update(self, predictions: torch.Tensor, targets: torch.Tensor) -> None:
        self.total += float(predictions.amax(1).sum())
        self.seen += len(targets)

    def compute(self) -> float:
        return self.total / self.seen + self.seen


def deep(width: int = 8) -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))


@pytest.mark.usefixtures("forked")
def test_a_metric_with_its_own_state_sees_the_whole_evaluation() -> None:
    values = []
    for tricks in (hp.Tricks(), TWO):
        metric = Own()
        result = fit(deep(), valid=pair(30), tricks=tricks, metrics={"own": metric}, target=("valid_own", 1000.0))
        values.append(result.metrics["valid_own"])
    assert values[1] == pytest.approx(values[0], abs=1e-5)


@pytest.mark.usefixtures("forked")
def test_a_function_of_the_model_sees_all_of_a_sharded_one() -> None:
    def parameters(model: nn.Module, data: Any) -> float:
        return float(sum(p.detach().square().sum() for p in model.parameters())) + sum(p.numel() for p in model.parameters())

    values = []
    for tricks in (hp.Tricks(), hp.Tricks(data_parallel=hp.DataParallel(workers=2, strategy="fsdp"))):
        values.append(fit(deep(), valid=pair(30), tricks=tricks, metrics={"norm": parameters}).metrics["valid_norm"])
    assert values[1] == pytest.approx(values[0], abs=1e-4)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("samples", [1, 30])
def test_torchmetrics_with_lists_as_states_also_with_fewer_samples_than_workers(samples: int) -> None:
    torchmetrics = pytest.importorskip("torchmetrics")
    values = []
    for tricks in (hp.Tricks(), TWO):
        metrics = {
            "calibration": torchmetrics.classification.MulticlassCalibrationError(num_classes=3),  # lists
            "accuracy": torchmetrics.Accuracy(task="multiclass", num_classes=3, average="micro"),  # sums
        }
        if samples > 1:
            metrics["auroc"] = torchmetrics.AUROC(task="multiclass", num_classes=3, thresholds=None)
        values.append(fit(deep(), valid=pair(samples), tricks=tricks, metrics=metrics).metrics)
    assert {k: round(v, 5) for k, v in values[0].items()} == {k: round(v, 5) for k, v in values[1].items()}
