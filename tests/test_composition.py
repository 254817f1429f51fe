"""Every pair of tricks and all seven together against one loop from the equations; refused pairs with their reasons."""

from __future__ import annotations

import math
from functools import partial
from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.helpers import sgd
from tests.workers import launch

import heptane as hp
from heptane.tricks import KINDS

SEED, SAMPLES, BATCH, EPOCHS, CLASSES = 3, 22, 8, 4, 3
PER_EPOCH = 3  # 8, 8 and 6
STEPS = EPOCHS * PER_EPOCH
LR, MOMENTUM, DECAY = 0.1, 0.9, 0.01
decaying = partial(sgd, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)
WORKERS, REFERENCE, EPS, FACTOR = 2, 2, 0.1, 2.0
Set = tuple[str, ...]

PAIRS: list[Set] = list(combinations(KINDS, 2))
SETS: list[Set] = [(name,) for name in KINDS] + PAIRS + [tuple(KINDS)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 0.0}  # under 16 bits the operations are the same, one by one
PARALLEL = [names for names in SETS if "data_parallel" in names]


def tricks(names: Set, weights: str) -> hp.Tricks:
    everything = {
        "data_parallel": hp.DataParallel(workers=WORKERS),
        "lr_scaling": hp.LRScaling(reference_batch=REFERENCE),
        "cyclical": hp.Cyclical(),
        "mixup": hp.Mixup(alpha=1.0),
        "label_smoothing": hp.LabelSmoothing(eps=EPS),
        "transfer": hp.Transfer(weights=weights, freeze=-1, unfreeze_every_epochs=1, rate_factor=FACTOR),
        "mixed_precision": hp.MixedPrecision(dtype="bf16"),
    }
    return hp.Tricks(**{name: everything[name] for name in names})


def precision_of(names: Set) -> torch.dtype:
    return torch.float32 if "mixed_precision" in names else torch.float64


def three_layers(seed: int = 0) -> torch.nn.Sequential:
    nn = torch.nn
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    x = torch.randn(SAMPLES, 6, generator=random, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (SAMPLES,), generator=random)


def with_heptane(names: Set, weights: str) -> dict[str, torch.Tensor]:
    dtype, (x, y) = precision_of(names), data()
    model = three_layers().to(dtype)
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "seed": SEED, "optimizer": decaying}
    applied = [step.step for step in hp.train(model, (x.to(dtype), y), tricks=tricks(names, weights), **settings)]
    assert applied == list(range(1, STEPS + 1))
    return dict(model.state_dict())


def all_parallel(weights: str) -> dict[Set, dict[str, torch.Tensor]]:
    return {names: with_heptane(names, weights) for names in PARALLEL}


def from_equations(names: Set) -> dict[str, torch.Tensor]:
    """The seven from their equations: no module, optimizer, schedule, criterion or loop of heptane's."""
    on = set(names)
    dtype, (x, y) = precision_of(names), data()
    x = x.to(dtype)
    source = three_layers(1 if "transfer" in on else 0).to(dtype)
    parameters = {name: p.detach().clone() for name, p in source.named_parameters()}
    layers = ["0", "2", "4"]
    velocity: dict[str, torch.Tensor] = {}
    for step in range(STEPS):
        epoch, at = divmod(step, PER_EPOCH)
        rows = hp.epoch_order(SAMPLES, SEED, epoch)[at * BATCH : (at + 1) * BATCH]
        batch_x, first, second, lam = blended(x, y, rows, step, "mixup" in on)
        trained = layers[max(0, 2 - epoch) :] if "transfer" in on else layers
        leaves = {n: p.clone().requires_grad_(n[0] in trained) for n, p in parameters.items()}
        gradients = shared_gradients(on, leaves, batch_x, first, second, lam)
        rate, momentum = rate_and_momentum(on, step)
        for name, gradient in gradients.items():
            depth = len(layers) - 1 - layers.index(name[0])
            group_rate = rate / FACTOR**depth if "transfer" in on else rate
            gradient = gradient.add(parameters[name], alpha=DECAY)
            velocity[name] = velocity[name] * momentum + gradient if name in velocity else gradient
            parameters[name] = parameters[name].add(velocity[name], alpha=-group_rate)
    return parameters


def blended(
    x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, step: int, mixes: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The draw is heptane's, a function of (seed, step) and of the whole batch; what is done with it is not."""
    size = len(rows)
    if not mixes:
        return x[rows], y[rows], y[rows], torch.ones(size)
    draw = hp.Mixup(alpha=1.0).draw(SEED, step, size)
    others = rows[draw.partner]
    return torch.lerp(x[others], x[rows], draw.lam[:, None].to(x)), y[rows], y[others], draw.lam


def shared_gradients(
    on: set[str],
    leaves: dict[str, torch.Tensor],
    x: torch.Tensor,
    first: torch.Tensor,
    second: torch.Tensor,
    lam: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Each worker's gradient of (its sum x workers / N); then their mean."""
    size, workers = len(x), WORKERS if "data_parallel" in on else 1
    edges = [rank * size // workers for rank in range(workers + 1)]
    trained = [name for name, leaf in leaves.items() if leaf.requires_grad]
    mean = {name: torch.zeros_like(leaves[name]) for name in trained}
    for low, high in pairwise(edges):
        with torch.autocast("cpu", torch.bfloat16, enabled="mixed_precision" in on):
            hidden = torch.tanh(torch.nn.functional.linear(x[low:high], leaves["0.weight"], leaves["0.bias"]))
            hidden = torch.tanh(torch.nn.functional.linear(hidden, leaves["2.weight"], leaves["2.bias"]))
            output = torch.nn.functional.linear(hidden, leaves["4.weight"], leaves["4.bias"]).to(x.dtype)
        total = summed_loss(on, output, first[low:high], second[low:high], lam[low:high])
        found = torch.autograd.grad(total * workers / size, [leaves[name] for name in trained])
        for name, gradient in zip(trained, found, strict=True):
            mean[name] += gradient / workers
    return mean


def summed_loss(
    on: set[str], output: torch.Tensor, first: torch.Tensor, second: torch.Tensor, lam: torch.Tensor
) -> torch.Tensor:
    eps = EPS if "label_smoothing" in on else 0.0
    if "mixup" not in on and "mixed_precision" in on:  # 16 bits magnify another order of operations
        return torch.nn.functional.cross_entropy(output, first, label_smoothing=eps, reduction="sum")
    eye = torch.eye(CLASSES, dtype=output.dtype)
    q = torch.lerp(eye[second], eye[first], lam[:, None].to(output))
    q = (1 - eps) * q + eps / CLASSES
    return -(q * output.log_softmax(1)).sum()


def rate_and_momentum(on: set[str], step: int) -> tuple[float, float]:
    rate, momentum = LR, MOMENTUM
    if "lr_scaling" in on:
        k = BATCH / REFERENCE
        rate *= k
        warm_steps = STEPS // 5
        if "cyclical" not in on and step < warm_steps:
            rate *= 1 / k + (1 - 1 / k) * step / warm_steps
    if "cyclical" in on:
        top, last = 0.3 * STEPS - 1, STEPS - 1
        rises = step <= top
        swing = (1 + math.cos(math.pi * (step / top if rises else (step - top) / (last - top)))) / 2  # from 1 to 0
        start, end = (0.04, 1.0) if rises else (1.0, 4e-6)
        rate *= end + (start - end) * swing
        start, end = (0.95, 0.85) if rises else (0.85, 0.95)
        momentum = end + (start - end) * swing
    return rate, momentum


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    save_file(dict(three_layers(1).state_dict()), path)
    return str(path)


@pytest.fixture(scope="module")
def parallel(weights: str) -> dict[Set, dict[str, torch.Tensor]]:
    return launch(all_parallel, {"weights": weights}, WORKERS)


def test_there_are_21_pairs() -> None:
    assert len(PAIRS) == 21
    assert len(SETS) == 7 + 21 + 1


@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_against_a_loop_written_by_hand(names: Set, weights: str, request: pytest.FixtureRequest) -> None:
    ours = request.getfixturevalue("parallel")[names] if names in PARALLEL else with_heptane(names, weights)
    expected = from_equations(names)
    plain = from_equations(())
    assert ours.keys() == expected.keys()
    for key, value in ours.items():
        assert value.dtype is precision_of(names)
        torch.testing.assert_close(value, expected[key], rtol=0, atol=TOLERANCE[value.dtype])
    if names != ("data_parallel",):
        assert any((value - plain[key]).abs().max() > 1e-4 for key, value in ours.items())


def test_a_cycle_and_a_warm_up_multiply_unless_both_warm_up() -> None:
    x, y = data()
    settings = {"epochs": EPOCHS, "batch_size": BATCH, "optimizer": decaying}
    scaling = hp.LRScaling(reference_batch=REFERENCE, warmup_steps=4)
    triangle = hp.Tricks(lr_scaling=scaling, cyclical=hp.Cyclical(shape="triangular", cycle_epochs=2, start=0.5))
    rates = [step.learning_rate for step in hp.train(three_layers(), (x, y), tricks=triangle, **settings)]
    for step, rate in enumerate(rates):
        warm = min(1.0, 0.25 + 0.75 * step / 4)
        height = 1 - abs((step % 6) / 3 - 1)
        assert abs(rate - 0.4 * warm * (0.5 + 0.5 * height)) < 1e-12
    both = hp.Tricks(lr_scaling=scaling, cyclical=hp.Cyclical())
    with pytest.raises(hp.InputError, match=r"LRScaling\.warmup_steps=4: 1cycle already warms up"):
        next(hp.train(three_layers(), (x, y), tricks=both, **settings))


def mean_absolute(output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (output - torch.nn.functional.one_hot(targets, CLASSES)).abs().mean()


@pytest.mark.parametrize(
    ("chosen", "loss", "why"),
    [
        (hp.Tricks(label_smoothing=hp.LabelSmoothing()), mean_absolute, "label_smoothing with a custom loss"),
        (
            hp.Tricks(label_smoothing=hp.LabelSmoothing()),
            torch.nn.CrossEntropyLoss(label_smoothing=0.2),
            "would smooth twice|smooth",
        ),
        (hp.Tricks(mixup=hp.Mixup(per_sample=True)), mean_absolute, "Mixup.per_sample=True does not support a custom loss"),
        (hp.Tricks(data_parallel=hp.DataParallel(workers=2)), None, "DataParallel.workers=2, but 1 run"),
        (hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp16")), None, "'fp16' is refused on a CPU"),
    ],
    ids=["smoothing a loss of one's own", "smoothing twice", "a coefficient per sample", "workers that do not run", "fp16"],
)
def test_what_does_not_go_together_is_refused_before_anything_is_trained(chosen: hp.Tricks, loss: Any, why: str) -> None:
    model = three_layers()
    with pytest.raises(hp.InputError, match=why):
        next(hp.train(model, data(), tricks=chosen, loss=loss, epochs=1, batch_size=8, optimizer=decaying))
    assert all(torch.equal(value, three_layers().state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("loss", ["mse", "l1", "smooth_l1"])
def test_smoothing_and_regression_are_refused(loss: str) -> None:
    x, _ = data()
    smoothing = hp.Tricks(label_smoothing=hp.LabelSmoothing())
    with pytest.raises(hp.InputError, match="regression has no classes to smooth"):
        next(
            hp.train(three_layers(), (x, x[:, :3]), tricks=smoothing, loss=loss, epochs=1, batch_size=8, optimizer=decaying)
        )
