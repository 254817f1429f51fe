"""CropFlip against a slow reference, one image at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import heptane as hp
from heptane.data.augment import Warp
from heptane.data.batches import BatchTransform, TensorSource

SHAPES = [(1, 1, 1, 1), (5, 1, 8, 8), (4, 3, 6, 9), (3, 4, 1, 7), (2, 2, 7, 1)]


def slow(inputs: torch.Tensor, draws: torch.Tensor, padding: int) -> torch.Tensor:
    """Pad with zeros, cut the window out, mirror it: plain indexing."""
    num, channels, height, width = inputs.shape
    padded = torch.zeros(num, channels, height + 2 * padding, width + 2 * padding, dtype=inputs.dtype)
    padded[:, :, padding : padding + height, padding : padding + width] = inputs
    out = torch.empty_like(inputs)
    for i, (down, right, flip) in enumerate(draws.tolist()):
        window = padded[i, :, down : down + height, right : right + width]
        out[i] = window.flip(-1) if flip else window
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("padding", [0, 1, 2, 10])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8, torch.bfloat16])
def test_equals_the_reference(shape, padding, flip, dtype):
    augment = hp.CropFlip(padding=padding, flip=flip)
    inputs = torch.randint(1, 200, shape).to(dtype)
    draws = augment.draw(np.random.default_rng(padding), shape[0])
    out = augment.apply(inputs, draws)
    assert out.shape == inputs.shape
    assert out.dtype == dtype
    assert torch.equal(out, slow(inputs, draws, padding))


def test_a_batch_that_is_not_contiguous_and_one_in_channels_last_give_the_same_pixels():
    augment = hp.CropFlip(padding=2)
    inputs = torch.randn(6, 3, 8, 5)
    draws = augment.draw(np.random.default_rng(0), 6)
    want = slow(inputs, draws, 2)
    for same in (inputs.contiguous(memory_format=torch.channels_last), inputs.transpose(2, 3).contiguous().transpose(2, 3)):
        assert not same.is_contiguous()
        assert torch.equal(augment.apply(same, draws), want)


def test_the_input_is_left_alone():
    inputs = torch.randn(6, 3, 8, 8)
    before = inputs.clone()
    augment = hp.CropFlip(padding=2)
    augment.apply(inputs, augment.draw(np.random.default_rng(0), 6)).add_(1)
    assert torch.equal(inputs, before)


def test_draws_cover_their_range_evenly():
    draws = hp.CropFlip(padding=2).draw(np.random.default_rng(0), 20_000)
    assert draws.shape == (20_000, 3)
    for column, values in enumerate((5, 5, 2)):
        counts = torch.bincount(draws[:, column], minlength=values)
        assert len(counts) == values
        assert torch.allclose(counts / 20_000, torch.full((values,), 1 / values), atol=0.015)
    assert hp.CropFlip(flip=False).draw(np.random.default_rng(0), 1000)[:, 2].max() == 0
    assert hp.CropFlip(padding=0, flip=False).draw(np.random.default_rng(0), 1000).max() == 0


def batch_of(inputs: torch.Tensor, *, step: int = 0, **place: object):
    source = TensorSource(inputs, torch.arange(len(inputs)), batch_size=len(inputs), seed=3)
    return next(source.batches(step, step + 1, BatchTransform(torch.device("cpu"), **place)))[1]


def test_a_part_of_the_batch_gets_the_rows_of_the_whole_whatever_the_split():
    inputs = torch.randn(11, 3, 8, 8)
    settings = {"seed": 3, "augment": hp.CropFlip(padding=3)}
    whole, targets = batch_of(inputs, **settings).take(slice(None))
    for edges in ([0, 11], [0, 1, 11], [0, 4, 5, 9, 11]):
        batch = batch_of(inputs, **settings)
        parts = [batch.take(slice(low, high)) for low, high in pairwise(edges)]
        assert torch.equal(torch.cat([part for part, _ in parts]), whole)
        assert torch.equal(torch.cat([part for _, part in parts]), targets)
    picked = torch.tensor([7, 7, 0])
    assert torch.equal(batch_of(inputs, **settings).take(picked)[0], whole[picked])


def test_draws_are_a_function_of_seed_and_step():
    inputs = torch.randn(16, 1, 8, 8)
    in_order = torch.argsort

    def augmented(step: int, seed: int) -> torch.Tensor:
        taken, which = batch_of(inputs, step=step, seed=seed, augment=hp.CropFlip(padding=3)).take(slice(None))
        return taken[in_order(which)]

    assert torch.equal(augmented(0, 3), augmented(0, 3))
    assert not torch.equal(augmented(0, 3), augmented(1, 3))
    assert not torch.equal(augmented(0, 3), augmented(0, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_memory_format_is_the_one_asked_for(channels):
    inputs = torch.randn(4, channels, 8, 8)
    plain = batch_of(inputs, augment=hp.CropFlip()).take(slice(None))[0]
    assert plain.is_contiguous()
    plain.view(4, -1)  # models call this
    last = batch_of(inputs, augment=hp.CropFlip(), channels_last=True).take(slice(None))[0]
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, last)


@pytest.mark.parametrize("padding", [-1, 1.5, True, float("nan"), "2"])
def test_bad_padding_is_refused(padding):
    with pytest.raises(hp.InputError, match=r"CropFlip\.padding=.*expected a whole number in \[0"):
        hp.CropFlip(padding=padding)


@pytest.mark.parametrize("shape", [(4, 8), (4, 8, 8), (4, 1, 2, 8, 8)])
def test_inputs_that_are_not_images_are_refused_with_their_shape(shape):
    augment = hp.CropFlip()
    with pytest.raises(hp.InputError, match=r"CropFlip needs images \(N, C, H, W\).*\(4, "):
        augment.apply(torch.zeros(shape), augment.draw(np.random.default_rng(0), 4))


def test_inputs_that_are_a_structure_are_refused():
    source = TensorSource({"a": torch.zeros(4, 1, 8, 8)}, torch.zeros(4), batch_size=4, seed=0)
    _, batch = next(source.batches(0, 1, BatchTransform(torch.device("cpu"), augment=hp.CropFlip())))
    with pytest.raises(hp.InputError, match="augment with inputs of type dict: expected one tensor"):
        batch.take(slice(None))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_model_may_view_what_a_convolution_makes_of_augmented_images(channels):
    class Views(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = torch.nn.Conv2d(channels, 4, 3), torch.nn.Linear(64, 2)

        def forward(self, x):
            return self.head(self.conv(x).view(len(x), -1))

    data = torch.randn(8, channels, 6, 6), torch.arange(8) % 2
    hp.fit(Views(), data, optimizer=torch.optim.AdamW, epochs=1, batch_size=4, augment=hp.CropFlip())


def test_a_warp_without_extent_leaves_images_as_they_are() -> None:
    images = torch.randn(3, 2, 9, 7)
    still = Warp(shift=0, scale=0, degrees=0)
    found = still.apply(images, still.draw(np.random.default_rng(0), 3))
    assert torch.allclose(found, images, atol=1e-5)


def test_a_warp_mirrors_half_of_the_images_if_asked() -> None:
    images = torch.randn(64, 1, 6, 6)
    mirror = Warp(shift=0, scale=0, degrees=0, flip=True)
    found = mirror.apply(images, mirror.draw(np.random.default_rng(0), 64))
    mirrored = (found - images.flip(3)).abs().flatten(1).amax(1) < 1e-5
    same = (found - images).abs().flatten(1).amax(1) < 1e-5
    assert bool((mirrored | same).all())
    assert 16 < int(mirrored.sum()) < 48


def test_a_warp_repeats_the_edge_and_keeps_a_light_ground_light() -> None:
    warp = Warp(shift=0.3, scale=0.5, degrees=30)
    light = torch.full((8, 3, 16, 16), 2.5)
    assert torch.allclose(warp.apply(light, warp.draw(np.random.default_rng(1), 8)), light, atol=1e-5)


def test_a_warp_of_a_part_is_the_part_of_the_warp() -> None:
    warp, images = Warp(flip=True), torch.randn(6, 1, 8, 8)
    draws = warp.draw(np.random.default_rng(2), 6)
    assert torch.equal(warp.apply(images, draws)[2:4], warp.apply(images[2:4], draws[2:4]))


@pytest.mark.parametrize("wrong", [{"shift": 0.6}, {"scale": -1}, {"degrees": 181}])
def test_a_warp_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(hp.InputError, match=rf"Warp\.{next(iter(wrong))}"):
        Warp(**wrong)
