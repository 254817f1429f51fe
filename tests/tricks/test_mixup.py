"""Mixup and CutMix: the kernel, draws that depend on (seed, step), pairs that do not depend on micro-batches."""

from __future__ import annotations

import gc
import math
from functools import partial
from itertools import pairwise

import pytest
import torch

import heptane as hp
from heptane.core.targets import MixedTargets, blend
from heptane.data.augment import CropFlip
from heptane.data.batches import Batch, BatchTransform, TensorSource
from heptane.tricks.mixup import Mixer, paste

CPU = torch.device("cpu")


def batch_of(inputs, targets, place=None, size=None) -> Batch:
    """A global batch in an order that is not the data's."""
    size = size or len(inputs)
    ((_, batch),) = TensorSource(inputs, targets, size, seed=3).batches(0, 1, place or BatchTransform(CPU))
    return batch


def filled(trick: hp.Mixup, model=None, *, total_steps=100, steps_per_epoch=10, seed=5) -> Mixer:
    return trick.fill(model or torch.nn.Identity(), seed, total_steps, steps_per_epoch)


def ks_distance(sample: torch.Tensor, cdf) -> float:
    """The largest gap between the empirical distribution and ``cdf``."""
    ordered = sample.double().sort().values
    steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
    theirs = cdf(ordered)
    return float(torch.maximum((theirs - steps[:-1]).abs(), (theirs - steps[1:]).abs()).max())


def test_mix_is_the_equation_of_the_paper():
    x, y = torch.randn(6, 3, 4, dtype=torch.float64), torch.rand(6, 5, dtype=torch.float64)
    partner = torch.tensor([3, 0, 2, 5, 1, 4])
    for lam in (0.0, 0.3, 1.0):
        mixed_x, mixed_y = hp.mixup_batch(x, y, lam, partner)
        for i in range(6):
            j = int(partner[i])
            torch.testing.assert_close(mixed_x[i], lam * x[i] + (1 - lam) * x[j], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(mixed_y[i], lam * y[i] + (1 - lam) * y[j], rtol=1e-12, atol=1e-12)


def test_mix_takes_a_coefficient_per_sample():
    x, y = torch.randn(4, 2, 3, 3), torch.randn(4)
    lam, partner = torch.tensor([0.1, 0.5, 0.9, 1.0]), torch.tensor([1, 2, 3, 0])
    mixed_x, mixed_y = hp.mixup_batch(x, y, lam, partner)
    for i in range(4):
        torch.testing.assert_close(mixed_x[i], lam[i] * x[i] + (1 - lam[i]) * x[partner[i]])
        torch.testing.assert_close(mixed_y[i], lam[i] * y[i] + (1 - lam[i]) * y[partner[i]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "lam", [0.25, torch.tensor(0.25), torch.full((3,), 0.25), torch.full((3,), 0.25, dtype=torch.float64)]
)
def test_mix_keeps_the_type_and_leaves_its_arguments_alone(dtype, lam):
    x, y = torch.arange(6.0).reshape(3, 2).to(dtype), torch.eye(3, dtype=dtype)
    kept = x.clone(), y.clone()
    mixed_x, mixed_y = hp.mixup_batch(x, y, lam, torch.tensor([1, 2, 0]))
    assert mixed_x.dtype == mixed_y.dtype == dtype
    assert mixed_x[0].tolist() == [0.25 * 0 + 0.75 * 2, 0.25 * 1 + 0.75 * 3]
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_at_one_and_zero_the_blend_is_exactly_one_of_the_two():
    first, second = torch.randn(5, 7), 1e6 * torch.randn(5, 7)
    assert torch.equal(blend(first, second, 1.0), first)
    assert torch.equal(blend(first, second, torch.zeros(5)), second)


def test_mix_takes_a_view_one_sample_and_none():
    x = torch.randn(3, 4, 5).transpose(1, 2)
    assert torch.equal(hp.mixup_batch(x, x, 0.5, torch.tensor([0, 1, 2]))[0], x)
    for size in (0, 1):
        mixed, targets = hp.mixup_batch(torch.ones(size, 2), torch.ones(size), torch.full((size,), 0.3), torch.arange(size))
        assert mixed.shape == (size, 2)
        assert targets.shape == (size,)


def test_rows_of_blended_one_hot_targets_sum_to_one():
    targets = hp.smooth_labels(torch.randint(0, 7, (20,)), 0.0, 7)
    _, mixed = hp.mixup_batch(torch.zeros(20, 1), targets, torch.rand(20), torch.randperm(20))
    torch.testing.assert_close(mixed.sum(1), torch.ones(20))


def test_mix_refuses_what_cannot_be_blended():
    partner = torch.tensor([1, 0])
    with pytest.raises(hp.InputError, match=r"targets of type torch.int64 .*hp.smooth_labels\(targets, 0.0, num_classes\)"):
        hp.mixup_batch(torch.zeros(2, 1), torch.tensor([0, 1]), 0.5, partner)
    with pytest.raises(hp.InputError, match=r"inputs of type torch.uint8 .*inputs.float\(\)"):
        hp.mixup_batch(torch.zeros(2, 1, dtype=torch.uint8), torch.zeros(2), 0.5, partner)
    with pytest.raises(hp.InputError, match=r"lam=1.5 is out of range: expected a number in \[0, 1\]"):
        hp.mixup_batch(torch.zeros(2, 1), torch.zeros(2), 1.5, partner)


def test_the_draw_is_a_pure_function_of_seed_and_step():
    trick = hp.Mixup(alpha=0.4, cutmix_alpha=1.0)
    backwards = {step: trick.draw(7, step, 12, (8, 8)) for step in reversed(range(20))}
    torch.manual_seed(1234)
    for step in range(20):
        again = hp.Mixup(alpha=0.4, cutmix_alpha=1.0).draw(7, step, 12, (8, 8))
        assert torch.equal(again.lam, backwards[step].lam)
        assert torch.equal(again.partner, backwards[step].partner)
        assert again.box == backwards[step].box


def test_the_draw_leaves_the_global_random_state_alone():
    state = torch.random.get_rng_state()
    hp.Mixup().draw(0, 0, 8)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_seed_or_step_draws_something_else():
    trick = hp.Mixup(alpha=1.0)
    draws = [trick.draw(seed, step, 64) for seed in range(5) for step in range(5)]
    assert len({float(draw.lam[0]) for draw in draws}) == 25
    assert len({tuple(draw.partner.tolist()) for draw in draws}) == 25


def test_golden_draw():
    draw = hp.Mixup(alpha=0.2).draw(seed=0, step=0, batch_size=6)
    assert draw.partner.tolist() == [2, 3, 1, 5, 4, 0]
    assert draw.lam.tolist() == pytest.approx([0.05124872] * 6, rel=1e-6)


def test_one_coefficient_per_batch_or_one_per_sample():
    whole = hp.Mixup(alpha=0.5).draw(0, 3, 200)
    each = hp.Mixup(alpha=0.5, per_sample=True).draw(0, 3, 200)
    for draw in (whole, each):
        assert (draw.lam.shape, draw.lam.dtype) == ((200,), torch.float32)
        assert (draw.partner.shape, draw.partner.dtype) == ((200,), torch.int64)
        assert draw.partner.sort().values.tolist() == list(range(200))
        assert bool(((draw.lam >= 0) & (draw.lam <= 1)).all())
    assert len(whole.lam.unique()) == 1
    assert len(each.lam.unique()) > 150


def test_the_coefficient_is_float32_whatever_the_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        assert hp.Mixup().draw(0, 0, 2).lam.dtype == torch.float32
        assert hp.Mixup(alpha=0, cutmix_alpha=1.0).draw(0, 0, 2, (4, 4)).lam.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("alpha", "cdf"),
    [
        (1.0, lambda x: x),
        (0.5, lambda x: 2 / math.pi * torch.asin(torch.sqrt(x))),
        (2.0, lambda x: 3 * x**2 - 2 * x**3),
    ],
)
def test_the_coefficients_follow_beta_alpha_alpha(alpha, cdf):
    """Kolmogorov and Smirnov: with n samples a distance over 1.95 / sqrt(n) has a chance of 1 in 1000."""
    per_sample = hp.Mixup(alpha=alpha, per_sample=True).draw(1, 0, 20_000).lam
    assert ks_distance(per_sample, cdf) < 1.95 / math.sqrt(20_000)
    trick = hp.Mixup(alpha=alpha)
    per_batch = torch.stack([trick.draw(1, step, 1).lam[0] for step in range(3000)])
    assert ks_distance(per_batch, cdf) < 1.95 / math.sqrt(3000)
    assert float(per_batch.double().var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_a_tiny_alpha_hardly_blends():
    lam = hp.Mixup(alpha=1e-6, per_sample=True).draw(0, 0, 1000).lam
    assert bool(((lam < 1e-6) | (lam > 1 - 1e-6)).all())
    assert 400 < int((lam > 0.5).sum()) < 600


def test_each_position_is_everyones_partner_alike():
    trick = hp.Mixup()
    partners = torch.stack([trick.draw(0, step, 4).partner for step in range(2000)])
    counts = torch.stack([(partners == j).sum(0) for j in range(4)])
    assert int((counts - 500).abs().max()) < 90


@pytest.mark.parametrize("size", [(28, 28), (8, 5), (1, 1), (1, 9), (96, 64)])
def test_cutmix_keeps_exactly_the_area_that_it_says(size):
    trick = hp.Mixup(alpha=0, cutmix_alpha=1.0)
    height, width = size
    for step in range(60):
        draw = trick.draw(0, step, 3, size)
        top, bottom, left, right = draw.box
        assert 0 <= top <= bottom <= height
        assert 0 <= left <= right <= width
        pasted = paste(torch.ones(3, 1, *size), torch.zeros(3, 1, *size), draw.box)
        kept = pasted.mean((1, 2, 3), dtype=torch.float64)
        assert draw.lam.tolist() == pytest.approx(kept.tolist(), abs=1e-6)
        assert draw.lam.shape == (3,)


def test_the_box_is_clipped_at_the_border_and_lam_is_what_is_left():
    """The corners of boxes reach both borders, and a clipped box keeps more than its coefficient asked for."""
    trick = hp.Mixup(alpha=0, cutmix_alpha=1.0)
    draws = [trick.draw(2, step, 1, (100, 100)) for step in range(1500)]
    boxes = torch.tensor([draw.box for draw in draws])
    assert int(boxes[:, 0].min()) == int(boxes[:, 2].min()) == 0
    assert int(boxes[:, 1].max()) == int(boxes[:, 3].max()) == 100
    inside = (boxes[:, 0] > 0) & (boxes[:, 1] < 100) & (boxes[:, 2] > 0) & (boxes[:, 3] < 100)
    assert 0 < int(inside.sum()) < 1500
    sides = (boxes[inside, 1] - boxes[inside, 0]) - (boxes[inside, 3] - boxes[inside, 2])
    assert int(sides.abs().max()) <= 1
    kept = torch.stack([draw.lam[0] for draw in draws])
    assert float(kept.mean()) > 0.6


def test_cutmix_centres_are_uniform_over_the_image():
    trick = hp.Mixup(alpha=0, cutmix_alpha=1.0)
    boxes = torch.tensor([trick.draw(4, step, 1, (1000, 1000)).box for step in range(2000)]).double()
    inside = (boxes[:, :2].min(1).values > 0) & (boxes[:, 1] < 1000)
    centres = (boxes[inside, 0] + boxes[inside, 1]) / 2000
    assert float(centres.mean()) == pytest.approx(0.5, abs=0.03)


def test_paste_takes_the_box_and_nothing_else():
    first, second = torch.zeros(2, 3, 6, 6), torch.ones(2, 3, 6, 6)
    out = paste(first, second, (1, 4, 2, 6))
    assert float(out.sum()) == 2 * 3 * 3 * 4
    assert bool((out[:, :, 1:4, 2:6] == 1).all())
    assert float(first.sum()) == 0
    assert paste(first.to(memory_format=torch.channels_last), second, (0, 1, 0, 1)).is_contiguous(
        memory_format=torch.channels_last
    )


def test_cutmix_takes_its_share_of_the_batches():
    trick = hp.Mixup(alpha=0.2, cutmix_alpha=1.0, cutmix_probability=0.3)
    cuts = sum(trick.draw(0, step, 2, (8, 8)).box is not None for step in range(2000))
    assert cuts / 2000 == pytest.approx(0.3, abs=0.04)
    always = hp.Mixup(alpha=0, cutmix_alpha=1.0, cutmix_probability=0.0)
    assert always.draw(0, 0, 2, (8, 8)).box is not None
    never = hp.Mixup(alpha=0.2, cutmix_alpha=1.0, cutmix_probability=0.0)
    assert all(never.draw(0, step, 2, (8, 8)).box is None for step in range(50))


def test_cutmix_without_images_is_refused():
    with pytest.raises(hp.InputError, match=r"needs images of shape \(N, C, H, W\)"):
        hp.Mixup(cutmix_alpha=1.0, alpha=0).draw(0, 0, 4)


@pytest.mark.parametrize("place", [BatchTransform(CPU), BatchTransform(CPU, augment=CropFlip())], ids=["plain", "augmented"])
@pytest.mark.parametrize(
    "trick", [hp.Mixup(alpha=1.0), hp.Mixup(alpha=1.0, per_sample=True), hp.Mixup(alpha=0, cutmix_alpha=1.0)], ids=str
)
def test_trap_9_the_pairs_are_the_same_whatever_the_micro_batches(trick, place):
    images, labels = torch.randn(11, 2, 6, 6), torch.arange(11)
    for step in range(3):
        whole_x, whole_y = filled(trick).take(batch_of(images, labels, place), slice(None), step)
        assert isinstance(whole_y, MixedTargets)
        for edges in ([0, 11], [0, 3, 11], [0, 1, 2, 6, 11], list(range(12))):
            mixer, batch = filled(trick), batch_of(images, labels, place)
            parts = [mixer.take(batch, slice(a, b), step) for a, b in pairwise(edges)]
            assert torch.equal(torch.cat([x for x, _ in parts]), whole_x)
            for name in ("first", "second", "lam"):
                assert torch.equal(torch.cat([getattr(y, name) for _, y in parts]), getattr(whole_y, name))
            counted = mixer.targets(batch, step)
            assert torch.equal(counted.first, whole_y.first)
            assert torch.equal(counted.second, whole_y.second)
            assert torch.equal(counted.lam, whole_y.lam)


def test_what_the_slot_gives_is_the_draw_applied_to_the_shuffled_batch():
    images, labels = torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.arange(9)
    batch, trick = batch_of(images, labels), hp.Mixup(alpha=1.0)
    x, y = batch.take(slice(None))
    mixed, targets = filled(trick, seed=8).take(batch, slice(None), 6)
    draw = trick.draw(8, 6, 9)
    lam = float(draw.lam[0])
    torch.testing.assert_close(mixed, lam * x + (1 - lam) * x[draw.partner], rtol=1e-12, atol=1e-12)
    assert torch.equal(targets.first, y)
    assert torch.equal(targets.second, y[draw.partner])


@pytest.mark.parametrize(
    "targets",
    [
        torch.arange(6),
        torch.rand(6, 5).softmax(1),
        torch.randint(0, 2, (6, 5)).float(),
        torch.randn(6),
        torch.randint(0, 4, (6, 7)),
    ],
    ids=["integer", "soft", "multi-label", "regression", "sequence"],
)
def test_targets_of_every_kind_travel_in_pairs(targets):
    batch = batch_of(torch.randn(6, 3), targets)
    _, mixed = filled(hp.Mixup(alpha=1.0)).take(batch, slice(None), 0)
    partner = hp.Mixup(alpha=1.0).draw(5, 0, 6).partner
    assert torch.equal(mixed.second, mixed.first[partner])
    assert mixed.first.dtype == targets.dtype


def test_the_last_epochs_are_not_blended():
    mixer = filled(hp.Mixup(off_last_epochs=1.5), total_steps=40, steps_per_epoch=10)
    data = torch.randn(4, 3), torch.arange(4)
    for step in range(40):
        batch = batch_of(*data)
        inputs, targets = mixer.take(batch, slice(None), step)
        assert isinstance(targets, MixedTargets) == (step < 25)
        assert isinstance(mixer.targets(batch, step), MixedTargets) == (step < 25)
        if step >= 25:
            assert torch.equal(inputs, batch.take(slice(None))[0])


def test_a_resume_in_the_middle_draws_what_the_whole_run_draws():
    data, trick = (torch.randn(8, 3), torch.arange(8)), hp.Mixup()
    through = filled(trick)
    seen = {step: through.take(batch_of(*data), slice(None), step) for step in range(6)}
    inputs, targets = filled(trick).take(batch_of(*data), slice(None), 5)
    assert torch.equal(inputs, seen[5][0])
    assert torch.equal(targets.lam, seen[5][1].lam)


def test_integer_images_take_cutmix_but_not_a_blend():
    batch = batch_of(torch.randint(0, 255, (4, 1, 6, 6), dtype=torch.uint8), torch.arange(4))
    pasted, _ = filled(hp.Mixup(alpha=0, cutmix_alpha=1.0)).take(batch, slice(None), 0)
    assert pasted.dtype == torch.uint8
    for trick in (hp.Mixup(), hp.Mixup(cutmix_alpha=1.0)):
        for step in range(5):
            with pytest.raises(hp.InputError, match=r"mixup of inputs of type torch.uint8: .*Mixup.layer"):
                filled(trick).take(batch, slice(None), step)


def test_inputs_without_a_height_and_width_are_refused_at_the_first_step():
    batch = batch_of(torch.randn(4, 6), torch.arange(4))
    for step in range(5):
        with pytest.raises(hp.InputError, match=r"Mixup\.cutmix_alpha needs images"):
            filled(hp.Mixup(cutmix_alpha=1.0)).take(batch, slice(None), step)
    filled(hp.Mixup(cutmix_alpha=1.0, cutmix_probability=0.0)).take(batch, slice(None), 0)


def test_inputs_or_targets_of_several_tensors_are_refused():
    for inputs, targets in [((torch.randn(4, 2),) * 2, torch.arange(4)), (torch.randn(4, 2), {"a": torch.arange(4)})]:
        batch = batch_of(inputs, targets, size=4)
        with pytest.raises(hp.InputError, match=r"expected one tensor|targets that are one tensor"):
            filled(hp.Mixup()).take(batch, slice(None), 0)


class Words(torch.nn.Module):
    """Tokens in, classes out; the layers whose output is not (N, ...) are there to be refused."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 6)
        self.recurrent = torch.nn.LSTM(6, 6, batch_first=True)
        self.unused = torch.nn.Linear(6, 6)
        self.head = torch.nn.Linear(6, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.recurrent(self.embedding(tokens))[0].mean(1))


def test_a_hidden_layer_is_blended_in_place_of_the_input():
    model = Words().double()
    tokens, labels = torch.randint(0, 20, (8, 5)), torch.randint(0, 3, (8,))
    batch, trick = batch_of(tokens, labels), hp.Mixup(alpha=1.0, layer="embedding", per_sample=True)
    mixer = filled(trick, model)
    inputs, targets = mixer.take(batch, slice(None), 0)
    got = model(inputs)
    plain_inputs, _ = batch.take(slice(None))
    assert torch.equal(inputs, plain_inputs)
    lam = targets.lam.double()[:, None, None]
    vectors = model.embedding.weight[plain_inputs]
    partner = trick.draw(5, 0, 8).partner
    mixed = lam * vectors + (1 - lam) * vectors[partner]
    expected = model.head(model.recurrent(mixed)[0].mean(1))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def test_hidden_blending_gives_the_same_gradients_whatever_the_micro_batches():
    tokens, labels = torch.randint(0, 20, (7, 5)), torch.randint(0, 3, (7,))
    gradients = []
    for edges in ([0, 7], [0, 2, 7], [0, 1, 2, 3, 7]):
        torch.manual_seed(0)
        model = Words().double()
        mixer, batch = filled(hp.Mixup(alpha=1.0, layer="embedding"), model), batch_of(tokens, labels)
        criterion = hp.CrossEntropy()
        for a, b in pairwise(edges):
            inputs, targets = mixer.take(batch, slice(a, b), 2)
            output = model(inputs)
            assert len(output) == b - a
            (criterion.total(output, targets) / criterion.count(mixer.targets(batch, 2))).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradients[2], gradients[0], rtol=1e-9, atol=1e-12)


def test_evaluation_passes_through_a_hidden_layer_untouched():
    model = Words()
    tokens, labels = torch.randint(0, 20, (8, 5)), torch.randint(0, 3, (8,))
    before = model(tokens)
    mixer = filled(hp.Mixup(layer="embedding", off_last_epochs=1), model, total_steps=11)
    mixer.take(batch_of(tokens, labels), slice(None), 0)
    model(tokens)
    assert torch.equal(model(tokens), before)
    mixer.take(batch_of(tokens, labels), slice(None), 1)
    model(tokens)
    _, targets = mixer.take(batch_of(tokens, labels), slice(None), 5)
    assert isinstance(targets, torch.Tensor)
    assert torch.equal(model(tokens), before)


def test_a_model_keeps_no_mark_of_the_runs_that_blended_inside_it():
    model, data = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)), (torch.randn(8, 3), torch.arange(8) % 2)
    tricks = hp.Tricks(mixup=hp.Mixup(layer="0"))
    hp.fit(model, data, optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=4, tricks=tricks)
    gc.collect()
    assert not model[0]._forward_hooks


def test_a_layer_that_is_not_there_is_refused_with_the_nearest_name():
    with pytest.raises(hp.InputError, match=r"Mixup.layer='embeding' is not a module.*did you mean embedding\?"):
        filled(hp.Mixup(layer="embeding"), Words())


def test_a_layer_whose_output_has_no_rows_to_blend_is_refused():
    model, batch = Words(), batch_of(torch.randint(0, 20, (8, 5)), torch.randint(0, 3, (8,)))
    mixer = filled(hp.Mixup(layer="recurrent"), model)
    inputs, _ = mixer.take(batch, slice(None), 0)
    with pytest.raises(hp.InputError, match=r"Mixup.layer='recurrent' gives an output of type tuple"):
        model(inputs)


def test_a_layer_that_never_runs_is_refused():
    model, data = Words(), (torch.randint(0, 20, (8, 5)), torch.randint(0, 3, (8,)))
    mixer = filled(hp.Mixup(layer="unused"), model)
    inputs, _ = mixer.take(batch_of(*data), slice(None), 0)
    model(inputs)
    with pytest.raises(hp.InputError, match=r"Mixup.layer='unused' did not run"):
        mixer.take(batch_of(*data), slice(None), 1)


def test_a_run_with_micro_batches_is_the_run_without():
    images, labels = torch.randn(22, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (22,))
    tricks = hp.Tricks(mixup=hp.Mixup(alpha=1.0, cutmix_alpha=1.0, per_sample=True), label_smoothing=hp.LabelSmoothing())
    weights = []
    for accumulate in (1, 3):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).double()
        sgd = partial(torch.optim.SGD, lr=0.5)
        run = {"optimizer": sgd, "epochs": 2, "batch_size": 8, "tricks": tricks, "accumulate": accumulate}
        for _ in hp.train(model, (images, labels), **run):
            pass
        weights.append(model[1].weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -0.1}, r"Mixup.alpha=-0.1 .*\[0, inf\)"),
        ({"alpha": math.inf}, r"Mixup.alpha=inf"),
        ({"cutmix_alpha": -1}, r"Mixup.cutmix_alpha=-1"),
        ({"cutmix_probability": 1.5}, r"Mixup.cutmix_probability=1.5 .*\[0, 1\]"),
        ({"off_last_epochs": -1}, r"Mixup.off_last_epochs=-1"),
        ({"alpha": 0}, r"turn both off: set one above 0"),
        ({"layer": "0", "cutmix_alpha": 1.0}, r"Mixup.layer='0' excludes CutMix"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(hp.InputError, match=message):
        hp.Mixup(**fields)
