"""The augmentations of pixels against Pillow and slow references, one image at a time."""

from __future__ import annotations

import colorsys
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

import heptane as hp
from heptane.data.augment import AUGMENTS, named_augment
from heptane.data.augment.pixels import TRIES
from heptane.data.augment.resized_crop import _sample
from heptane.data.augment.trivial import FACTOR, OPERATIONS, _operate
from heptane.data.batches import BatchTransform, TensorSource

ALL = [
    hp.RandomResizedCrop(size=(10, 12)),
    hp.RandomResizedCrop(),
    hp.ColorJitter(hue=0.1),
    hp.RandomErasing(probability=0.5),
    hp.TrivialAugment(),
    hp.AugmentSequence([hp.Warp(flip=True), hp.RandomResizedCrop(size=9), hp.CropFlip(padding=1), hp.RandomErasing()]),
]


def pictures(count: int, height: int = 24, width: int = 30, channels: int = 3) -> torch.Tensor:
    """Smooth random pictures, uint8."""
    small = torch.rand(count, channels, 5, 5, generator=torch.Generator().manual_seed(1))
    return (torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1) * 255).round().byte()


def pil(image: torch.Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def tensor(image: Image.Image) -> torch.Tensor:
    array = np.asarray(image)
    return torch.from_numpy(array.copy()).reshape(*array.shape[:2], -1).permute(2, 0, 1)


def levels(one: torch.Tensor, other: torch.Tensor) -> int:
    """Largest difference of two uint8 images."""
    return int((one.int() - other.int()).abs().max())


@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("channels", [1, 3])
def test_each_sample_has_its_own_draws_whatever_the_split(augment, dtype, channels):
    inputs = pictures(13, channels=channels).to(dtype)
    before = inputs.clone()
    draws = augment.draw(np.random.default_rng(0), 13)
    assert torch.equal(draws, augment.draw(np.random.default_rng(0), 13))
    assert not torch.equal(draws, augment.draw(np.random.default_rng(1), 13))
    whole = augment.apply(inputs, draws)
    assert whole.dtype == dtype
    assert torch.equal(inputs, before)
    for edges in ([0, 1, 13], [0, 5, 6, 13]):
        parts = [augment.apply(inputs[low:high], draws[low:high]) for low, high in pairwise(edges)]
        assert torch.allclose(torch.cat(parts).float(), whole.float(), atol=1e-4)
    alike = augment.apply(inputs[:1].expand(13, -1, -1, -1), draws)
    assert len({image.contiguous().numpy().tobytes() for image in alike}) > 3
    last = augment.apply(inputs.contiguous(memory_format=torch.channels_last), draws)
    assert torch.allclose(last.float(), whole.float(), atol=1e-4)


@pytest.mark.parametrize("augment", ALL, ids=lambda augment: type(augment).__name__)
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40), st.booleans())
def test_any_shape_is_taken_and_pixels_stay_pixels(augment, count, channels, height, width, whole):
    inputs = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8)
    inputs = inputs if whole else inputs.float()
    found = augment.apply(inputs, augment.draw(np.random.default_rng(height), count))
    assert found.shape[:2] == inputs.shape[:2]
    assert found.dtype == inputs.dtype
    assert float(found.min()) >= 0
    assert float(found.max()) <= 255.01


def reference_box(draws: list[float], height: int, width: int, scale, ratio) -> tuple[int, int, int, int]:
    """torchvision's ``RandomResizedCrop.get_params``, from given uniform numbers."""
    for area_draw, ratio_draw in zip(draws[:TRIES], draws[TRIES : 2 * TRIES], strict=True):
        area = height * width * (scale[0] + area_draw * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + ratio_draw * (math.log(ratio[1]) - math.log(ratio[0])))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = int(draws[-3] * (height - tall + 1)), int(draws[-2] * (width - wide + 1))
            return top, left, tall, wide
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - tall) // 2, (width - wide) // 2, tall, wide


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 60), st.integers(1, 60), st.sampled_from([(0.35, 1.0), (0.9, 1.0), (0.08, 0.1)]))
def test_parts_are_those_of_torchvision(seed, height, width, scale):
    crop = hp.RandomResizedCrop(scale=scale)
    draws = crop.draw(np.random.default_rng(seed), 3)
    want = [reference_box(row, height, width, scale, crop.ratio) for row in draws.tolist()]
    assert crop.boxes(height, width, draws).tolist() == [list(box) for box in want]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_resized_crop_is_that_of_pillow(channels):
    crop, images = hp.RandomResizedCrop(size=(16, 20)), pictures(24, 32, 40, channels)
    draws = crop.draw(np.random.default_rng(2), 24)
    found = crop.apply(images, draws)
    boxes = crop.boxes(32, 40, draws)
    assert 0 < int((draws[:, -1] < 0.5).sum()) < 24
    sampled = _sample(images, boxes, draws[:, -1] < 0.5, (16, 20))
    floats = crop.apply(images.float(), draws)
    for at, (top, left, tall, wide) in enumerate(boxes.tolist()):
        box = (left, top, left + wide, top + tall)
        want = pil(images[at]).crop(box).resize((20, 16), Image.Resampling.BILINEAR)
        want = tensor(ImageOps.mirror(want) if draws[at, -1] < 0.5 else want)
        assert levels(found[at], want) <= 1
        assert float((floats[at] - want).abs().max()) <= 1.5
        assert float((sampled[at].float() - want).abs().mean()) <= 1.5  # another filter, for other devices


def test_a_crop_of_everything_is_a_resize_and_none_of_a_size_is_the_input():
    images = pictures(3, 20, 20)
    whole = hp.RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=False)
    draws = whole.draw(np.random.default_rng(0), 3)
    assert torch.equal(whole.apply(images, draws), images)
    assert torch.equal(_sample(images, whole.boxes(20, 20, draws), torch.zeros(3, dtype=torch.bool), (20, 20)), images)
    assert whole.for_size(5, 7).apply(images, draws).shape == (3, 3, 5, 7)
    assert hp.RandomResizedCrop(size=4).for_size(5, 7) == hp.RandomResizedCrop(size=4)


def test_brightness_contrast_and_saturation_are_those_of_pillow():
    images = pictures(4)
    kinds = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
    for at, (name, kind) in enumerate(kinds.items()):
        jitter = hp.ColorJitter(**{other: 0.8 if other == name else 0.0 for other in kinds})
        draws = jitter.draw(np.random.default_rng(at), 4)
        found = jitter.apply(images, draws)
        for image, changed, draw in zip(images, found, draws[:, at].tolist(), strict=True):
            assert levels(changed, tensor(kind(pil(image)).enhance(0.2 + 1.6 * draw))) <= 1


def test_hue_is_that_of_hsv():
    images, jitter = pictures(2, 6, 6), hp.ColorJitter(brightness=0, contrast=0, saturation=0, hue=0.5)
    draws = jitter.draw(np.random.default_rng(0), 2)
    found = jitter.apply(images, draws)
    for image, changed, draw in zip(images, found, draws[:, 3].tolist(), strict=True):
        for before, after in zip(image.flatten(1).T.tolist(), changed.flatten(1).T.tolist(), strict=True):
            hue, *rest = colorsys.rgb_to_hsv(*(value / 255 for value in before))
            want = [255 * value for value in colorsys.hsv_to_rgb((hue + draw - 0.5) % 1, *rest)]
            assert after == pytest.approx(want, abs=0.51)


def test_erasing_fills_a_share_of_the_images_with_their_mean():
    images = pictures(400, 20, 20)
    erasing = hp.RandomErasing(probability=0.25, scale=(0.1, 0.2))
    draws = erasing.draw(np.random.default_rng(0), 400)
    found = erasing.apply(images, draws)
    changed = [at for at in range(400) if not torch.equal(found[at], images[at])]
    assert 70 < len(changed) < 130
    for at in changed[:20]:
        other = (found[at] != images[at]).any(0)
        assert other.sum() <= 0.25 * 400
        assert torch.equal(
            found[at][:, other], images[at].float().mean((1, 2)).round().byte()[:, None].expand(3, other.sum())
        )
    standard = (images.float() - 100) / 50
    assert torch.allclose(erasing.apply(standard, draws) * 50 + 100, erasing.apply(images.float(), draws), atol=1e-3)
    assert torch.equal(hp.RandomErasing(probability=0).apply(images, draws), images)


def trivially(name: str, images: torch.Tensor, strength: float) -> torch.Tensor:
    """TrivialAugment with a given operation and strength."""
    draws = torch.tensor([[(list(OPERATIONS).index(name) + 0.5) / len(OPERATIONS), strength, 0.9]])
    return hp.TrivialAugment().apply(images, draws.double().expand(len(images), -1))


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 0.999])
def test_trivial_operations_on_colours_are_those_of_pillow(strength):
    images, share = pictures(3), math.floor(strength * 31) / 30
    factor = 1 + FACTOR * share
    smooth = {  # by operation: Pillow's result, and the largest difference
        "none": (lambda image: image, 0),
        "brightness": (lambda image: ImageEnhance.Brightness(image).enhance(factor), 1),
        "contrast": (lambda image: ImageEnhance.Contrast(image).enhance(factor), 1),
        "saturation": (lambda image: ImageEnhance.Color(image).enhance(factor), 1),
        "sharpness": (lambda image: ImageEnhance.Sharpness(image).enhance(factor), 2),
        "posterize": (lambda image: ImageOps.posterize(image, 8 - round(6 * share)), 0),
        "solarize": (lambda image: ImageOps.solarize(image, 255 * (1 - share)), 0),
        "autocontrast": (ImageOps.autocontrast, 1),
        "equalize": (ImageOps.equalize, 0),
    }
    for name, (want, most) in smooth.items():
        found = trivially(name, images, strength)
        for image, changed in zip(images, found, strict=True):
            assert levels(changed, tensor(want(pil(image)))) <= most, name


def test_trivial_operations_move_pixels():
    images = pictures(2, 28, 28)
    by = round(28 * 32 / 224)  # 4 pixels
    across, down = trivially("shift_across", images, 0.999), trivially("shift_down", images, 0.999)
    assert levels(across[:, :, :, :-by], images[:, :, :, by:]) <= 1
    assert not across[:, :, :, -by:].any()
    assert levels(down[:, :, :-by], images[:, :, by:]) <= 1
    # halfway from 0 to 135 degrees; Pillow turns counter-clockwise
    turned = trivially("rotate", images, 0.5)
    for image, changed in zip(images, turned, strict=True):
        want = tensor(pil(image).rotate(67.5, Image.Resampling.BILINEAR))
        assert ((changed.int() - want.int()).abs() <= 1).float().mean() > 0.9
    for name, rows in (("shear_across", (1, 1, 0, 0, 1, 0)), ("shear_down", (1, 0, 0, 1, 1, 0))):
        found = trivially(name, images, 0.999)
        centre = 14 * 0.99
        a, b, _, d, e, _ = (0.99 * value if at in (1, 3) else value for at, value in enumerate(rows))
        matrix = (a, b, -centre if b else 0, d, e, -centre if d else 0)
        for image, changed in zip(images, found, strict=True):
            want = tensor(pil(image).transform((28, 28), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR))
            assert ((changed.int() - want.int()).abs() <= 1).float().mean() > 0.9, name  # the others are at the edge
        assert torch.equal(trivially(name, images, 0.0), images)


def test_trivial_draws_each_operation_and_strength_alike():
    draws = hp.TrivialAugment().draw(np.random.default_rng(0), 14_000)
    counts = torch.bincount((draws[:, 0] * len(OPERATIONS)).long(), minlength=len(OPERATIONS))
    assert len(OPERATIONS) == 14
    assert torch.allclose(counts / 1000, torch.ones(14), atol=0.12)


def test_a_list_applies_each_with_its_own_draws():
    parts = [hp.CropFlip(padding=1), hp.Warp(), hp.RandomErasing(probability=1.0)]
    both, inputs, rng = hp.AugmentSequence(parts), torch.randn(5, 3, 8, 8), np.random.default_rng(4)
    want = inputs
    for augment in parts:
        want = augment.apply(want, augment.draw(rng, 5))
    assert torch.equal(both.apply(inputs, both.draw(np.random.default_rng(4), 5)), want)
    assert hp.Extras(augment=parts).augment == both
    assert not both.on_pixels
    crop = hp.AugmentSequence([hp.RandomResizedCrop(), hp.RandomErasing()])
    assert (crop.on_pixels, crop.room, both.room) == (True, 1.25, 1.0)
    assert crop.for_size(5, 6).augments[0].size == (5, 6)
    nothing = hp.AugmentSequence([])
    assert torch.equal(nothing.apply(inputs, nothing.draw(rng, 5)), inputs)


def test_a_run_takes_a_list_and_gives_the_same_with_micro_batches():
    data = pictures(32, 12, 12).float(), torch.arange(32) % 2
    found = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 2)).double()
        hp.fit(
            model,
            (data[0], data[1]),
            optimizer="sgd",
            lr=1e-6,
            epochs=2,
            batch_size=16,
            accumulate=accumulate,
            augment=[hp.RandomResizedCrop(), hp.RandomErasing()],
        )
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.allclose(found[0], found[1], rtol=1e-6, atol=1e-9)


def test_draws_in_a_run_are_a_function_of_seed_and_step():
    images = pictures(16)

    def augmented(step: int, seed: int) -> torch.Tensor:
        place = BatchTransform(torch.device("cpu"), seed=seed, augment=named_augment("trivial"))
        source = TensorSource(images.float(), torch.arange(16), batch_size=16, seed=0)
        inputs, which = next(source.batches(step, step + 1, place))[1].take(slice(None))
        return inputs[torch.argsort(which)]

    assert torch.equal(augmented(5, 3), augmented(5, 3))
    assert not torch.equal(augmented(5, 3), augmented(6, 3))
    assert not torch.equal(augmented(5, 3), augmented(5, 4))


def test_every_name_is_an_augmentation():
    assert {"none", "flip", "crop-flip", "warp", "warp-flip", "crop", "crop-color", "trivial"} == set(AUGMENTS)
    images = pictures(4).float()
    for name in AUGMENTS:
        augment = named_augment(name)
        if augment is not None:
            assert augment.apply(images, augment.draw(np.random.default_rng(0), 4)).shape == images.shape
    with pytest.raises(hp.InputError, match=r"did you mean crop.*expected one of none, flip"):
        named_augment("crops")


@pytest.mark.parametrize("augment", [hp.ColorJitter(), hp.TrivialAugment()], ids=["jitter", "trivial"])
def test_colours_of_what_is_no_pixel_are_refused(augment):
    draws = augment.draw(np.random.default_rng(0), 4)
    for inputs, message in (
        (torch.randn(4, 3, 8, 8), r"needs pixel values in \[0, 255\].*these inputs reach from -.*uint8 images, or use"),
        (torch.rand(4, 3, 8, 8).clamp(0.25), r"these inputs reach from 0\.25 to"),
        (torch.zeros(4, 2, 8, 8), "1 or 3 channels, but these have 2"),
        (torch.zeros(4, 8), r"needs images \(N, C, H, W\), but the inputs are \(4, 8\)"),
    ):
        with pytest.raises(hp.InputError, match=message):
            augment.apply(inputs, draws)
    assert augment.apply(torch.zeros(4, 3, 8, 8), draws).shape == (4, 3, 8, 8)  # black is black


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hp.RandomResizedCrop(size=0), r"RandomResizedCrop\.size=0"),
        (lambda: hp.RandomResizedCrop(size=(1, 2, 3)), "expected a height and a width"),
        (lambda: hp.RandomResizedCrop(scale=0.5), r"scale=0\.5: expected two numbers"),
        (lambda: hp.RandomResizedCrop(scale=(0.5, 1.5)), r"scale=1\.5 is out of range"),
        (lambda: hp.RandomResizedCrop(ratio=(2, 1)), "expected the smaller number first"),
        (lambda: hp.RandomResizedCrop(flip=1), "expected True or False"),
        (lambda: hp.ColorJitter(contrast=-1), r"ColorJitter\.contrast=-1"),
        (lambda: hp.ColorJitter(hue=0.6), r"ColorJitter\.hue=0\.6"),
        (lambda: hp.RandomErasing(probability=2), r"RandomErasing\.probability=2"),
        (lambda: hp.RandomErasing(scale=(0, 0.5)), r"RandomErasing\.scale=0"),
        (lambda: hp.AugmentSequence(hp.CropFlip()), "expected a list of augmentations"),
        (lambda: hp.Extras(augment=[hp.CropFlip(), torch.relu]), "the function .* in a list of augmentations"),
        (lambda: hp.Extras(augment=[None]), "None in a list of augmentations"),
        (lambda: hp.Extras(augment=hp.TrivialAugment), "is a class: pass an object"),
    ],
)
def test_wrong_settings_are_refused(make, message):
    with pytest.raises(hp.InputError, match=message):
        make()


def test_trivial_operations_on_a_group_are_those_on_each_image():
    images, draws = pictures(60), hp.TrivialAugment().draw(np.random.default_rng(0), 60)
    which = (draws[:, 0] * len(OPERATIONS)).long()
    assert len(set(which.tolist())) > 8
    found = _operate(images, which, draws[:, 1], draws[:, 1] - 0.5)  # as on another device than a CPU
    for at in range(60):
        alone = _operate(images[at : at + 1], which[at : at + 1], draws[at : at + 1, 1], draws[at : at + 1, 1] - 0.5)
        assert levels(found[at], alone[0]) <= 1
