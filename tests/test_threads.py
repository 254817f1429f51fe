"""Work that is shared out to threads gives the same bits with any number of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Lock

import numpy as np
import pytest
import torch
from PIL import Image

import heptane as hp
from heptane.base.threads import by_parts


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_parts_cover_all_rows_once(number: int, count: int, threads: None) -> None:
    torch.set_num_threads(number)
    seen, lock = [], Lock()

    def work(rows: slice) -> None:
        with lock:
            seen.append((rows.start, rows.stop, torch.get_num_threads()))

    by_parts(work, count)
    assert sorted(row for start, stop, _ in seen for row in range(start, stop)) == list(range(count))
    assert len(seen) == max(1, min(number, count))
    if len(seen) > 1:
        assert {inside for *_, inside in seen} == {1}
    assert torch.get_num_threads() == number


def test_an_error_in_a_thread_reaches_the_caller_and_parts_may_be_nested(threads: None) -> None:
    torch.set_num_threads(2)
    total, lock = [], Lock()

    def inner(rows: slice) -> None:
        with lock:
            total.extend(range(rows.start, rows.stop))

    by_parts(lambda rows: by_parts(inner, rows.stop - rows.start), 6)
    assert sorted(total) == [0, 0, 1, 1, 2, 2]

    def fails(rows: slice) -> None:
        if rows.start:
            raise ValueError("the second part")

    with pytest.raises(ValueError, match="the second part"):
        by_parts(fails, 4)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_crops_are_the_same_bits_with_any_number_of_threads_and_in_both_formats(
    tmp_path: Path, mode: str, threads: None
) -> None:
    draw = np.random.default_rng(0)
    for index in range(20):
        folder = tmp_path / f"class{index % 2}"
        folder.mkdir(exist_ok=True)
        shape = (40, 50) if mode == "L" else (40, 50, 3)
        Image.fromarray(draw.integers(0, 256, shape, dtype=np.uint8), mode).save(folder / f"{index}.png")
    reading = hp.Reading(cache="off", room=1.25)
    images = hp.load_data(tmp_path, image_size=24, valid_fraction=0.1, reading=reading).train[0]
    crop = hp.RandomResizedCrop(size=24)
    pixels = images.pixels(torch.arange(len(images)))
    draws = crop.draw(np.random.default_rng(1), len(images))
    plain = (crop.apply(pixels, draws).double() / 255).float()
    assert len(plain.unique()) > 100
    found = []
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        for channels_last in (False, True):
            values = images.finish(pixels, crop, draws, channels_last=channels_last)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            assert values.is_contiguous(memory_format=layout)
            found.append(values)
    assert all(torch.equal(values, found[0]) for values in found)
    assert torch.equal(images.finish(crop.apply(pixels, draws)), found[0])
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (images.mean, images.std))
    assert torch.allclose(found[0] * std + mean, plain, atol=1e-6)
