"""Several workers compute what one does, up to rounding; failures come back as one error."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import Counting, adamw, assert_close, net, points, sgd
from tests.workers import TWO, launch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.core.loop import gradients, micro_batches, steps
from heptane.core.run import Phase
from heptane.distributed.replicas import broadcast_buffers, check_replicas
from heptane.distributed.workers import Worker, all_gather, this_worker
from heptane.session.checkpoints import checkpoint, restore

SAMPLES, CLASSES, EPOCHS = 22, 3, 2
Case = dict[str, Any]


decaying = partial(sgd, weight_decay=0.01)


def gentle(params: Any) -> torch.optim.Optimizer:
    """Two samples normalised by themselves make large gradients."""
    return torch.optim.SGD(params, lr=0.001, momentum=0.9)


def normalising() -> torch.nn.Sequential:
    """BatchNorm with and without parameters and running statistics, over samples and over positions."""
    nn = torch.nn
    torch.manual_seed(0)
    norms = nn.BatchNorm1d(4), nn.BatchNorm2d(4, affine=False), nn.BatchNorm1d(5, momentum=None)
    around = nn.Linear(6, 8), nn.Unflatten(1, (4, 2)), norms[0], nn.Unflatten(2, (2, 1)), norms[1], nn.Flatten()
    return nn.Sequential(*around, nn.Tanh(), nn.Linear(8, 5), norms[2], nn.Tanh(), nn.Linear(5, CLASSES)).double()


class Tagger(torch.nn.Module):
    """(N, T) tokens to (N, T, C) scores."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = torch.nn.Embedding(11, 6).double(), torch.nn.Linear(6, CLASSES).double()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.embed(tokens)))


class Tied(torch.nn.Module):
    """Two layers are one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = (torch.nn.Linear(6, num).double() for num in (6, 6, CLASSES))
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(inputs)))))


class Detour(torch.nn.Module):
    """One layer gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = net(), torch.nn.Linear(2, 2).double()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.used(inputs)


def sentences() -> tuple[torch.Tensor, torch.Tensor]:
    """Lengths from 1 to 7: the parts of a batch hold very unequal numbers of valid positions."""
    random = torch.Generator().manual_seed(6)
    tokens, tags = (torch.randint(0, high, (SAMPLES, 7), generator=random) for high in (11, CLASSES))
    lengths = 1 + torch.arange(SAMPLES) ** 2 % 7
    return tokens, tags.where(torch.arange(7) < lengths[:, None], -100)


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(8)
    x = torch.randn(SAMPLES, 1, 4, 6, generator=random, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (SAMPLES,), generator=random)


def convolving() -> torch.nn.Sequential:
    nn = torch.nn
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, CLASSES)).double()


def several_labels() -> tuple[torch.Tensor, torch.Tensor]:
    x, y = points()
    return x, (x[:, :CLASSES] > y[:, None] - 1).double()


WEIGHTED = torch.nn.CrossEntropyLoss(weight=torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
CASES: dict[str, Case] = {
    "sgd": {},
    "adamw": {"optimizer": adamw},
    "sgd in 32 bits": {"dtype": torch.float32, "tolerance": 1e-5},
    "adamw in 32 bits": {"optimizer": adamw, "dtype": torch.float32, "tolerance": 1e-5},
    "micro-batches: 3": {"accumulate": 3},
    "micro-batches: 4": {"accumulate": 4, "optimizer": adamw},
    "a last batch of one sample": {"batch_size": 7},
    "a last batch of one sample in micro-batches": {"batch_size": 7, "accumulate": 3},
    "batches of one sample": {"batch_size": 1, "epochs": 0.5},
    "class weights": {"loss": WEIGHTED, "accumulate": 2},
    "ignored positions": {"model": Tagger, "data": sentences},
    "ignored positions in micro-batches": {"model": Tagger, "data": sentences, "accumulate": 3},
    "ignored positions, smoothed": {"model": Tagger, "data": sentences, "label_smoothing": hp.LabelSmoothing(eps=0.2)},
    "several labels": {"data": several_labels},
    "clipping": {"clip_norm": 0.05, "accumulate": 3},
    "mixup": {"mixup": hp.Mixup(alpha=1.0)},
    "mixup per sample": {"mixup": hp.Mixup(alpha=1.0, per_sample=True), "accumulate": 3, "loss": WEIGHTED},
    "mixup of hidden features": {"mixup": hp.Mixup(alpha=1.0, layer="1"), "accumulate": 2},
    "CutMix": {"model": convolving, "data": pictures, "mixup": hp.Mixup(alpha=0, cutmix_alpha=1.0)},
    "CutMix per sample in micro-batches": {
        "model": convolving,
        "data": pictures,
        "mixup": hp.Mixup(alpha=0, cutmix_alpha=1.0, per_sample=True),
        "accumulate": 3,
    },
    "unfreezing": {"transfer": hp.Transfer(freeze=-1, unfreeze_every_epochs=1, rate_factor=2), "epochs": 3},
    "a layer that is not used": {"model": Detour},
    "BatchNorm over all workers": {"model": normalising, "sync_batchnorm": True},
    "BatchNorm over all workers, under mixup and clipping": {
        "model": normalising,
        "sync_batchnorm": True,
        "mixup": hp.Mixup(alpha=1.0),
        "clip_norm": 0.05,  # and not Adam: it enlarges the rounding that is all the gradient of a bias before BatchNorm
    },
    "one sum for many buckets": {"bucket_mib": 1e-5},
}
OWN_STATISTICS = {"model": normalising, "optimizer": gentle}
TIED = {"model": lambda: Tied(), "data": points}
NOT_SHARDED = {"one sum for many buckets", "several labels", "class weights"}  # have nothing to do with it
NOT_SHARDED |= {"adamw in 32 bits", "micro-batches: 3", "ignored positions", "mixup", "CutMix"}  # others include them
CASES |= {
    f"sharded: {name}": {**case, "strategy": "fsdp"}
    for name, case in {**CASES, "a shared weight": TIED}.items()
    if name not in NOT_SHARDED
}
FOR_TWO = ["micro-batches: 4", "batches of one sample", "mixup per sample", "BatchNorm over all workers", "unfreezing"]


def run(case: Case, workers: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """The parameters after a few epochs of uneven batches, and the averages of the whole run."""
    model, data = case.get("model", net)(), case.get("data", points)()
    if "dtype" in case:
        model, data = model.to(case["dtype"]), (data[0].to(case["dtype"]), data[1])
    names = ("mixup", "label_smoothing", "transfer")
    parallel = {name: case[name] for name in ("bucket_mib", "sync_batchnorm", "strategy") if name in case}
    tricks = hp.Tricks(
        data_parallel=hp.DataParallel(workers=workers, **parallel) if workers > 1 else None,
        **{name: case[name] for name in names if name in case},
    )
    settings = {"optimizer": decaying, "epochs": EPOCHS, "batch_size": 8, "accumulate": 1, "clip_norm": None, "loss": None}
    settings = {key: case.get(key, value) for key, value in settings.items()}
    event = None
    for event in hp.train(model, data, tricks=tricks, seed=3, **settings):  # noqa: B007
        pass
    assert event is not None
    return dict(event.run.gathered().state_dict()), event.run.meter.read()


def cases(workers: int) -> list[str]:
    """Three workers try everything, since their shares are uneven; two and four a few."""
    return {2: ["sgd", *FOR_TWO], 3: list(CASES), 4: ["sgd", "adamw", "sharded: sgd", "sharded: adamw"]}[workers]


def run_all(workers: int) -> dict[str, Any]:
    """Everything that is asked of one group of workers, in one start."""
    found: dict[str, Any] = {name: run(CASES[name], workers) for name in cases(workers)}
    if workers == 4:
        return found
    found["is two"] = workers == 2
    found["own statistics"] = run(OWN_STATISTICS, workers)
    found["bad inputs"] = [with_bad_inputs(row) for row in (0, 7)]
    found["evaluations"] = [hp.evaluate(net(), [part[:size] for part in points()]) for size in (1, 2, 7, 22)]
    found["normalised"] = normalised(workers)
    found["replicas"] = [replicas_after(change) for change in (None, "last bit", "all are NaN")]
    found["another number"] = refusal(hp.DataParallel(workers=workers + 5))
    found["too few to normalise"] = refusal(hp.DataParallel(workers=workers, sync_batchnorm=True), batch_size=7)
    found["off in a group"] = run({} if torch.distributed.get_rank() == 0 else {"optimizer": adamw}, 1)
    found["all-reduces"] = all_reduces(workers)
    return found


def normalised(workers: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """A model with BatchNorm, whose statistics differ from worker to worker until they are shared."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, CLASSES)).double()
    x, y = points()
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=workers))
    losses = [
        hp.evaluate(model, (x, y))["loss"]
        for event in hp.train(model, (x[:16], y[:16]), tricks=tricks, optimizer=sgd, epochs=2, batch_size=8)
        if event.ends_epoch
    ]
    return dict(model.state_dict()), losses


def with_bad_inputs(row: int) -> tuple[dict[str, torch.Tensor], list[list[str]]]:
    """BatchNorm over all workers, and an input of the first batch that is not finite: in the share of the first worker or of
    the last. The parameters, and what each worker has to say."""
    tricks = hp.Tricks(data_parallel=hp.DataParallel(sync_batchnorm=True))
    one = assemble(normalising(), points(), Plan.of(optimizer=sgd, epochs=1, batch_size=8), tricks=tricks)
    one.source.inputs[hp.epoch_order(SAMPLES, 0, 0)[row]] = float("nan")  # after the data was looked at
    for _ in steps(one):
        pass
    return dict(one.model.state_dict()), all_gather(one.events.warnings, one.worker)


def replicas_after(change: str | None) -> str:
    model = net()
    with torch.no_grad():
        if change == "last bit" and this_worker().rank == 1:
            weight = model[2].weight
            weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0, dtype=torch.float64))
        if change == "all are NaN":
            model[2].weight.fill_(float("nan"))
    try:
        check_replicas(model)
    except RuntimeError as error:
        return str(error)
    return "equal"


def all_reduces(workers: int) -> int:
    """How often the gradients of 3 steps of 4 micro-batches are summed over the workers."""
    sums = []

    def count(state, bucket):  # PyTorch refuses annotations that are text
        sums.append(bucket.index())
        return default_hooks.allreduce_hook(state, bucket)

    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=workers))
    one = assemble(net(), points(), Plan.of(optimizer=sgd, epochs=1, batch_size=8, accumulate=4), tricks=tricks)
    enter = one.enter

    def enter_and_count(phase: Phase) -> tuple[torch.nn.Module, Any]:
        wrapped, source = enter(phase)
        wrapped.register_comm_hook(None, count)
        return wrapped, source

    one.enter = enter_and_count  # type: ignore[method-assign]
    for _ in steps(one):
        pass
    return len(sums)


def refusal(trick: hp.DataParallel, batch_size: int = 8) -> str:
    tricks = hp.Tricks(data_parallel=trick)
    try:
        next(hp.train(net(), points(), tricks=tricks, optimizer=sgd, epochs=1, batch_size=batch_size))
    except hp.InputError as error:
        return str(error)
    return "not refused"


@pytest.fixture(scope="module")
def two() -> dict[str, Any]:
    return launch(run_all, {"workers": 2}, 2)


@pytest.fixture(scope="module")
def three() -> dict[str, Any]:
    return launch(run_all, {"workers": 3}, 3)


@pytest.fixture(scope="module")
def four() -> dict[str, Any]:
    return launch(run_all, {"workers": 4}, 4)


@pytest.fixture(params=[2, 3], ids=["two workers", "three workers"])
def several(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.getfixturevalue({2: "two", 3: "three"}[request.param])


@pytest.mark.parametrize(
    ("several", "name"),
    [pytest.param(workers, name, id=f"{workers}-{name}") for workers in (2, 3) for name in cases(workers)],
    indirect=["several"],
)
def test_as_one_worker(several: dict[str, Any], name: str) -> None:
    alone, averages = run(CASES[name], 1)
    together, theirs = several[name]
    tolerance = CASES[name].get("tolerance", 1e-12)
    assert_close(together, alone, tolerance)
    loose = 1e-6 if "mixup" in CASES[name] else tolerance  # hits weigh float32 lam
    assert theirs == pytest.approx(averages, rel=0, abs=loose)


def test_four_are_one_too_and_parts_of_a_model_are_its_copies(four: dict[str, Any]) -> None:
    for name, (together, _) in four.items():
        assert_close(together, run(CASES[name], 1)[0], CASES[name].get("tolerance", 1e-12))
    assert_close(four["sharded: sgd"][0], four["sgd"][0])
    assert_close(four["sharded: adamw"][0], four["adamw"][0])


def test_with_statistics_of_their_own_they_are_one_process_that_goes_through_the_shares_in_turn(
    several: dict[str, Any],
) -> None:
    together, _ = several["own statistics"]
    workers = 2 if several.get("is two") else 3
    assert_close(together, in_chunks(workers))


@pytest.mark.parametrize("row", [0, 7])
def test_where_one_worker_has_bad_inputs_all_look_for_the_layer_and_none_waits(several: dict[str, Any], row: int) -> None:
    together, said = several["bad inputs"][row == 7]
    alone, ((message,),) = with_bad_inputs(row)
    assert_close(together, alone)
    bad = hp.epoch_order(SAMPLES, 0, 0)[row]
    assert message == f"step 0: the gradients are not finite; its inputs are not; sample {bad}; passed over"
    assert said.pop(0 if row == 0 else -1) == [message]
    for (other,) in said:
        assert "it began in the output of layer '2' (GlobalBatchNorm)" in other


def in_chunks(workers: int) -> dict[str, torch.Tensor]:
    """``OWN_STATISTICS`` by hand: every share is normalised by itself, and the running statistics are the first's."""
    model, (x, y) = normalising(), points()
    optimizer = gentle(model.parameters())
    for epoch in range(EPOCHS):
        for chosen in hp.epoch_order(SAMPLES, 3, epoch).split(8):
            optimizer.zero_grad()
            for rank in range(workers):
                part = chosen[Worker(rank, workers).share(len(chosen))]
                before = [buffer.clone() for buffer in model.buffers()]
                loss = torch.nn.functional.cross_entropy(model(x[part]), y[part], reduction="sum")
                (loss / len(chosen)).backward()
                if rank > 0:
                    for buffer, first in zip(model.buffers(), before, strict=True):
                        buffer.copy_(first)
            optimizer.step()
    return dict(model.state_dict())


def test_256_workers_of_32_samples_reduce_to_the_gradient_of_8192() -> None:
    random = torch.Generator().manual_seed(7)
    x = torch.randn(8192, 6, generator=random, dtype=torch.float64)
    y = torch.randint(0, CLASSES, (8192,), generator=random)
    one = assemble(net(), (x, y), Plan.of(optimizer=sgd, epochs=1, batch_size=8192))

    def gradient(worker: Worker) -> torch.Tensor:
        one.worker = worker
        ((step, batch),) = one.source.batches(0, 1, one.place)
        one.optimizer.zero_grad()
        gradients(one, one.model, batch, step)
        return torch.cat([parameter.grad.reshape(-1) for parameter in one.model.parameters()])

    parts = torch.stack([gradient(Worker(rank, 256)) for rank in range(256)])
    torch.testing.assert_close(parts.mean(0), gradient(Worker()), rtol=0, atol=1e-14)
    assert (parts[0] - parts[1]).abs().max() > 1e-3


def test_something_was_learned(three: dict[str, Any]) -> None:
    for name, case in CASES.items():
        before = case.get("model", net)().state_dict()
        assert any(not torch.equal(value, before[key]) for key, value in three[name][0].items()), name


def test_an_evaluation_counts_each_sample_once(several: dict[str, Any]) -> None:
    for size, found in zip((1, 2, 7, 22), several["evaluations"], strict=True):
        assert_close(found, hp.evaluate(net(), [part[:size] for part in points()]))


def test_all_workers_evaluate_with_the_statistics_of_the_first(several: dict[str, Any]) -> None:
    state, losses = several["normalised"]
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, CLASSES)).double()
    model.load_state_dict(state)
    assert abs(losses[-1] - hp.evaluate(model, points())["loss"]) < 1e-12


def test_copies_that_differ_in_one_bit_are_found_and_nan_is_equal_to_itself(several: dict[str, Any]) -> None:
    equal, bit, nan = several["replicas"]
    assert equal == nan == "equal"
    assert "'2.weight' is the first to differ" in bit


def test_another_number_of_workers_than_runs_is_refused(two: dict[str, Any]) -> None:
    assert two["another number"].startswith("DataParallel.workers=7, but 2 run, from RANK=0, WORLD_SIZE=2, ")
    assert two["another number"].endswith(
        "(left over from another job? unset them): expected as many; start the script with torchrun --nproc-per-node=7, "
        "or call heptane.fit, which starts them"
    )
    assert refusal(hp.DataParallel(workers=2)).startswith("DataParallel.workers=2, but 1 run")


def test_batchnorm_over_all_workers_wants_a_sample_for_each(several: dict[str, Any]) -> None:
    assert several["too few to normalise"].startswith("DataParallel.sync_batchnorm=True with a batch of 1 samples for ")


def test_the_workers_meet_once_per_step_not_once_per_micro_batch(several: dict[str, Any]) -> None:
    assert several["all-reduces"] == 3


def test_off_in_a_process_group_each_process_trains_alone(two: dict[str, Any]) -> None:
    (in_a_group, averages), (alone, own) = two["off in a group"], run({}, 1)
    assert_close(in_a_group, alone)
    assert averages == pytest.approx(own, rel=1e-12)


def test_shares_are_as_even_as_it_goes_and_hold_each_sample_once() -> None:
    assert {Worker(rank, 256).share(8192).stop - Worker(rank, 256).share(8192).start for rank in range(256)} == {32}
    for size in (1, 2, 3, 5, 8):
        for num_samples in range(14):
            shares = [Worker(rank, size).share(num_samples) for rank in range(size)]
            assert [i for share in shares for i in range(num_samples)[share]] == list(range(num_samples))
            lengths = [share.stop - share.start for share in shares]
            assert max(lengths) - min(lengths) <= 1


def test_micro_batches_are_as_even_as_it_goes_and_none_is_empty() -> None:
    assert micro_batches(slice(0, 10), 4) == [slice(0, 2), slice(2, 5), slice(5, 7), slice(7, 10)]
    assert micro_batches(slice(3, 5), 4) == [slice(3, 4), slice(4, 5)]
    assert micro_batches(slice(6, 6), 4) == [slice(6, 6)]


def test_alone_there_is_nothing_to_wrap_compare_or_share() -> None:
    model = net()
    assert this_worker() == Worker(0, 1)
    assert hp.DataParallel(workers=1).wrap(model) is model
    assert hp.DataParallel(sync_batchnorm=True).convert(model) is model
    check_replicas(model)
    broadcast_buffers(model)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_auto_is_one_worker_on_a_cpu_and_the_reason_is_given() -> None:
    assert hp.DataParallel().resolve() == (1, "no GPU, and one process uses all cores of a CPU")
    assert hp.DataParallel(workers=3).resolve() == (3, "asked for")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 0}, r"DataParallel\.workers=0 is out of range: expected a whole number in \[1, inf\)"),
        ({"workers": "two"}, r"DataParallel\.workers='two': expected 'auto' or a whole number in \[1, inf\)"),
        ({"workers": 1.5}, r"DataParallel\.workers=1\.5: expected a whole number"),
        ({"workers": True}, r"DataParallel\.workers=True: expected a whole number"),
        ({"workers": None}, r"DataParallel\.workers=None: expected a whole number"),
        ({"bucket_mib": 0}, r"DataParallel\.bucket_mib=0 is out of range: expected a number in \(0, inf\)"),
        ({"sync_batchnorm": "no"}, r"DataParallel\.sync_batchnorm='no': expected True or False"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        hp.DataParallel(**fields)


def fit_by_two(model: torch.nn.Module, data: Any, **more: Any) -> Any:
    return hp.fit(
        model, data, **({"optimizer": decaying, "epochs": EPOCHS, "batch_size": 8, "seed": 3, "tricks": TWO} | more)
    )


@pytest.mark.usefixtures("forked")  # a worker that is killed (test_elastic.py) is one of the real launcher
def test_fit_starts_the_workers_itself_and_fills_the_model_it_was_given(tmp_path: Path) -> None:
    model = net()
    result = fit_by_two(model, points(), valid=points(), run_dir=tmp_path / "run", optimizer=lambda params: decaying(params))
    assert_close(dict(model.state_dict()), run({}, 1)[0])
    assert result.model is model
    assert [record["step"] for record in result.history] == [3, 6]
    assert abs(result.metrics["valid_loss"] - hp.evaluate(model, points())["loss"]) < 1e-12
    assert (tmp_path / "run" / "result.json").exists()


@pytest.mark.usefixtures("forked")
def test_wrong_input_that_only_a_worker_sees_comes_back_as_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(hp.InputError) as caught:
        fit_by_two(net(), (points()[0], points()[1] + 1))
    where = points()[1].tolist().index(2)
    assert str(caught.value) == f"label 3 of sample {where} is out of range: the model has 3 outputs, so labels are 0 to 2"
    assert capfd.readouterr() == ("", "")


def breaks(error: Callable[[], BaseException], model: Counting, output: torch.Tensor) -> torch.Tensor:
    """In the second worker only, in the third training pass."""
    if model.passes == 3 and this_worker().rank == 1:
        raise error()
    return output


@pytest.mark.usefixtures("forked")
def test_what_breaks_in_a_worker_is_named_once_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError) as caught:
        fit_by_two(Counting(partial(breaks, lambda: ZeroDivisionError("no such luck"))), points())
    lines = str(caught.value).splitlines()
    assert lines[0] == "worker 1 of 2 failed with ZeroDivisionError: no such luck"
    assert lines[-1] == "ZeroDivisionError: no such luck"
    assert any("in forward" in line for line in lines)
    assert capfd.readouterr() == ("", "")


def sharded(epochs: float, run_dir: Path, **more: Any) -> hp.Result:
    """``fit`` in a group of workers, its model in parts, its validation data less than the workers."""
    model, (x, y) = normalising(), points()
    tricks = hp.Tricks(data_parallel=hp.DataParallel(strategy="fsdp"), mixed_precision=hp.MixedPrecision(dtype="fp32"))
    settings = {"optimizer": adamw, "batch_size": 8, "clip_norm": 0.5, "seed": 3, **more}
    return hp.fit(model, (x, y), (x[:1], y[:1]), tricks=tricks, epochs=epochs, run_dir=run_dir, **settings)


def sharded_runs(folder: Path) -> dict[str, Any]:
    """One without a stop, one that stops after an epoch and goes on, and what 16 bits make of it."""
    whole = sharded(2, folder / "whole")
    sharded(2, folder / "stopped", target=("valid_loss", 1e9))
    (path,) = (folder / "stopped" / "checkpoints").glob("step-*")
    parts = sorted(part.name for part in path.iterdir())
    whole_again = unsharded(path)
    resumed = sharded(2, folder / "stopped", resume=True)
    torch.manual_seed(0)
    images, labels = torch.randn(16, 1, 8, 8), torch.arange(16) % 2
    nn = torch.nn
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    bf16 = hp.MixedPrecision(dtype="bf16", channels_last="on")
    tricks = hp.Tricks(data_parallel=hp.DataParallel(strategy="fsdp"), mixed_precision=bf16)
    sixteen_bits = hp.fit(small, (images, labels), optimizer=sgd, epochs=2, batch_size=8, tricks=tricks)
    found = {"whole": whole, "resumed": resumed, "bf16": sixteen_bits}
    return {
        **{name: dict(result.model.state_dict()) for name, result in found.items()},
        "history": [len(result.history) for result in (whole, resumed)],
        "kind": type(whole.model).__name__,
        "file": path.name,
        "parts": parts,
        "by one worker": whole_again,
        "valid": (whole.history[-1]["valid_loss"], hp.evaluate(whole.model, tuple(part[:1] for part in points()))["loss"]),
    }


def unsharded(path: Path) -> dict[str, torch.Tensor]:
    """The model that a worker alone finds in a checkpoint in parts."""
    x, y = points()
    settings = {"optimizer": adamw, "batch_size": 8, "clip_norm": 0.5, "seed": 3, "epochs": 2}
    tricks = settings.pop("tricks", None)
    alone = assemble(normalising(), (x, y), Plan.of(**settings), tricks)
    assert restore.load(alone, checkpoint.read(path))[0] == 3
    return dict(alone.model.state_dict())


def test_a_sharded_run_goes_on_bitwise_and_leaves_an_ordinary_model_and_file(tmp_path: Path) -> None:
    found = launch(sharded_runs, {"folder": tmp_path}, 2)
    assert found["kind"] == "Sequential"
    assert found["file"] == "step-000000003"
    assert found["history"] == [2, 2]
    assert [part.split("-")[0] for part in found["parts"]] == ["facts.json", "shard", "shard"]
    assert all(torch.isfinite(value).all() for value in found["by one worker"].values())
    assert found["valid"][0] == pytest.approx(found["valid"][1], abs=1e-12)
    for key, value in found["whole"].items():
        assert torch.equal(value, found["resumed"][key]), key
    assert all(torch.isfinite(value).all() for value in found["bf16"].values())
    again = normalising()
    hp.load_weights(again, tmp_path / "whole" / "model.safetensors")
    for key, value in again.state_dict().items():
        assert torch.equal(value, found["whole"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (lambda: FloatingPointError("not finite at step 3"), FloatingPointError, "^not finite at step 3$"),
        (lambda: KeyboardInterrupt(), KeyboardInterrupt, "^$"),
        (lambda: os._exit(9), RuntimeError, r"^worker 1 of 2 died without a traceback \(exit code 9\)"),
    ],
    ids=["divergence", "interrupt", "killed"],
)
def test_other_ends_of_a_worker(error: Any, kind: type[BaseException], message: str) -> None:
    with pytest.raises(kind, match=message):
        fit_by_two(Counting(partial(breaks, error)), points())


SCRIPT = """
    import sys
    import torch
    import heptane as hp

    class Net(torch.nn.Module):  # of the script itself, which has no main guard
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = torch.nn.Linear(6, 3)
        def forward(self, x):
            return self.layer(x)

    x = torch.linspace(-1, 1, 66).reshape(11, 6)
    model = Net()
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers={workers}))
    sgd = lambda params: torch.optim.SGD(params, lr=0.5)
    hp.fit(model, (x, torch.arange(11) % 3), optimizer=sgd, epochs=3, batch_size=4, tricks=tricks)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        torch.save(model.state_dict(), sys.argv[1])
"""


def script(folder: Path, workers: Any) -> Path:
    path = folder / f"script_{str(workers).strip(chr(39))}.py"
    path.write_text(textwrap.dedent(SCRIPT).format(workers=workers))
    return path


def call(*command: Any, folder: Path) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=folder, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_a_script_under_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["script", str(tmp_path / "one.pt")])
    runpy.run_path(str(script(tmp_path, 1)), run_name="__main__")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    call(*launcher, script(tmp_path, "'auto'"), tmp_path / "torchrun.pt", folder=tmp_path)
    one, several = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "torchrun.pt")
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=0, atol=1e-6)


def test_a_script_that_starts_its_own_workers_from_another_folder_with_a_model_of_a_module_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "beside" / "my_net.py").write_text("import torch\nclass Layer(torch.nn.Linear):\n    pass\n")
    text = SCRIPT.replace("import heptane", "import my_net\n    import heptane").replace("torch.nn.Linear", "my_net.Layer")
    path = tmp_path / "beside" / "script.py"
    path.write_text(textwrap.dedent(text).format(workers=2))
    call(path, tmp_path / "out.pt", folder=tmp_path / "elsewhere")
    assert (tmp_path / "out.pt").exists()


@pytest.mark.slow
def test_an_interrupt_at_the_keyboard_ends_parent_and_workers(tmp_path: Path) -> None:
    text = SCRIPT.replace("epochs=3", "epochs=10**6").replace(
        "return self.layer(x)", "print('on', flush=True); return self.layer(x)"
    )
    (tmp_path / "script.py").write_text(textwrap.dedent(text).format(workers=2))
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out.pt")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("on")  # both may say so at once
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert stderr.rstrip().endswith("KeyboardInterrupt")
    assert process.returncode == -signal.SIGINT  # as any script that Python's own handler ends
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def drifts(model: Counting, output: torch.Tensor) -> torch.Tensor:
    """One worker's copy of a parameter changes by itself in the third training pass."""
    if model.passes == 3 and this_worker().rank == 1:
        with torch.no_grad():
            model.layer.bias[0] += 1e-9
    return output


@pytest.mark.usefixtures("forked")
def test_copies_that_drift_apart_on_the_way_are_found_before_anything_is_saved(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the workers' models have diverged: parameter 'layer\.bias' is the first"):
        fit_by_two(Counting(drifts), points(), valid=points(), run_dir=tmp_path / "run")
    assert list((tmp_path / "run").rglob("step-*")) == []
