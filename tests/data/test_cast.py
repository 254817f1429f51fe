"""Inputs of types that the model does not take are converted, everywhere alike, with a note."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from tests.helpers import fit, sgd, weights
from torch import nn
from torch.utils.data import DataLoader, Dataset

import heptane as hp
from heptane.data.batches import BatchTransform, epoch_order
from heptane.data.cast import Cast, to_tensors

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(64, 4)), RANDOM.integers(0, 3, 64)
IMAGES = RANDOM.integers(0, 256, (64, 3, 8, 8), dtype=np.uint8)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Items(Dataset):
    """Items of NumPy arrays and Python numbers."""

    def __init__(self, x, y) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int):
        return self.x[index], self.y[index].item()


def stacked(items):
    return np.stack([x for x, _ in items]), np.array([y for _, y in items])


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def test_float64_trains_as_float32_bit_for_bit_and_is_said_once():
    converted, plain = fit(linear(), (X, Y), (X, Y)), fit(linear(), (torch.tensor(X).float(), torch.tensor(Y)))
    assert torch.equal(weights(converted), weights(plain))
    assert [note for note in converted.notes if "converted" in note] == ["inputs were converted from float64 to float32"]
    assert not any("converted" in note for note in plain.notes)


@pytest.mark.parametrize("kind", ["arrays", "tensors", "items", "loader", "readers"])
def test_uint8_images_are_scaled_whatever_holds_them(kind: str):
    made = {
        "arrays": lambda: (IMAGES, Y),
        "tensors": lambda: (torch.tensor(IMAGES), torch.tensor(Y)),
        "items": lambda: Items(IMAGES, Y),
        "loader": lambda: DataLoader(Items(IMAGES, Y), 16),
        "readers": lambda: DataLoader(
            Items(IMAGES, Y),
            16,
            num_workers=1,
            collate_fn=stacked,
        ),
    }[kind]
    result = fit(net(), made(), made())
    assert "uint8 images were scaled to [0, 1]" in result.notes
    floats = torch.tensor(IMAGES) / 255, torch.tensor(Y)
    again = fit(net(), floats if kind in ("arrays", "tensors", "items") else DataLoader(Items(*floats), 16))
    assert torch.equal(weights(result), weights(again))
    assert hp.evaluate(result.model, made()) == pytest.approx(hp.evaluate(result.model, floats), rel=1e-6)
    assert result.metrics["valid_loss"] == pytest.approx(hp.evaluate(result.model, floats)["loss"], rel=1e-6)


def test_a_model_that_takes_them_as_they_are_is_given_them_as_they_are():
    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x):
            assert x.dtype is torch.uint8
            return self.net(x.float() / 255)

    result = fit(Scales(), (IMAGES, Y), (IMAGES, Y))
    assert not any("scaled" in note for note in result.notes)


def test_uint8_of_0_and_1_is_not_scaled():
    result = fit(net(), (IMAGES % 2, Y))
    assert any("from uint8 to float32" in note for note in result.notes)
    assert torch.equal(weights(result), weights(fit(net(), (torch.tensor(IMAGES % 2).float(), torch.tensor(Y)))))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_tokens_stay_integers(dtype: str):
    tokens = RANDOM.integers(0, 9, (64, 5)).astype(dtype)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    assert not any("converted" in note for note in fit(model, (tokens, Y)).notes)


@pytest.mark.parametrize("made", ["int64", "bool", "uint16", "float16", ">f8"])
def test_numbers_become_the_models_type_where_it_needs_it(made: str):
    numbers = RANDOM.integers(0, 2, (64, 4)).astype(made)
    assert any(note.endswith("to float32") for note in fit(linear(), (numbers, Y), (numbers, Y)).notes)


def test_bytes_that_an_embedding_looks_up_become_indices():
    tokens = RANDOM.integers(0, 9, (64, 5)).astype(np.uint8)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    assert "inputs were converted from uint8 to int64" in fit(model, (tokens, Y)).notes


def test_a_model_in_64_bits_stays_so_bit_for_bit():
    torch.manual_seed(0)
    mine, model = nn.Linear(4, 1).double(), nn.Linear(4, 1).double()
    model.load_state_dict(mine.state_dict())
    x, y = torch.tensor(X), torch.tensor(X).sum(1, keepdim=True)
    result = fit(model, (x, y), epochs=1, batch_size=64)
    nn.functional.mse_loss(mine(x[epoch_order(64, 0, 0)]), y[epoch_order(64, 0, 0)]).backward()
    sgd(mine.parameters()).step()
    assert torch.equal(mine.weight, model.weight)
    assert not any("converted" in note for note in result.notes)


def test_targets_in_64_bits_become_32_also_for_a_loss_of_ones_own():
    seen = set()

    def loss(output, targets):
        seen.add(targets.dtype)
        return (output.squeeze(1) - targets).square().mean()

    result = fit(nn.Linear(4, 1), (X, X.sum(1)), (X, X.sum(1)), loss=loss)
    assert seen == {torch.float32}
    assert "targets were converted from float64 to float32" in result.notes


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(8, 3)

    def forward(self, ids, numbers):
        assert ids.dtype is torch.int64
        return self.head(torch.cat([self.embed(ids).mean(1), numbers], 1))


IDS = RANDOM.integers(0, 9, (64, 5))


def test_of_a_dict_each_tensor_is_treated_by_itself():
    data = {"ids": IDS, "numbers": X, "labels": Y}
    result = fit(Mixed(), data, data, run_dir=None)
    assert [n for n in result.notes if "converted" in n] == ["inputs['numbers'] were converted from float64 to float32"]


class Rows(Dataset):
    """As a Hugging Face data set gives them, a column of text among them."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int):
        return {"text": f"row {index}", "ids": IDS[index], "numbers": X[index], "labels": int(Y[index])}


@pytest.mark.parametrize("collate", [None, hp.pad_batch])
def test_a_column_of_text_that_the_model_does_not_take_is_left_out(collate):
    loader = DataLoader(Rows(), 8, collate_fn=collate)
    result = fit(Mixed(), loader, loader, accumulate=2)
    assert "inputs['text'] are text, which Mixed does not take: removed" in result.notes
    assert result.steps["applied"] == 8


def test_a_column_of_text_that_the_model_takes_is_refused_by_name():
    class Takes(Mixed):
        def forward(self, text, ids, numbers):
            return super().forward(ids, numbers)

    class Reads(Mixed):
        def forward(self, batch):
            return super().forward(batch["ids"], batch["numbers"]) + len(batch["text"])

    for model in (Takes(), Reads()):
        with pytest.raises(hp.InputError, match=r"inputs\['text'\] are text.*tokenizer"):
            fit(model, Rows())
    with pytest.raises(hp.InputError, match=r"text.*tokenizer"):
        fit(linear(), (X, ["a"] * 64))


def test_meta_sparse_and_nested_tensors_are_one_clear_error():
    y = torch.tensor(Y)
    with pytest.raises(hp.InputError, match="inputs are on the meta device"):
        fit(linear(), (torch.zeros(64, 4, device="meta"), y))
    with pytest.raises(hp.InputError, match="'weight' of Linear is on the meta device"):
        fit(nn.Linear(4, 3, device="meta"), (X, Y))
    with pytest.raises(hp.InputError, match="'weight' of Linear is on the meta device"):
        hp.evaluate(nn.Linear(4, 3, device="meta"), (X, Y))
    with pytest.raises(hp.InputError, match=r"sparse tensor.*to_dense"):
        fit(linear(), (torch.eye(64, 4).to_sparse(), y))
    nested = torch.nested.nested_tensor([torch.zeros(2, 4)] * 64, layout=torch.jagged)
    with pytest.raises(hp.InputError, match=r"nested tensor.*pad it"):
        fit(linear(), (nested, y))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([[None]] * 64), "dtype object"),
        (np.ma.masked_array(X, X > 0), "masked"),
        (np.zeros((64, 4), "datetime64[s]"), "dtype datetime64"),
    ],
)
def test_arrays_that_are_no_numbers_are_refused(array, message: str):
    with pytest.raises(hp.InputError, match=message):
        fit(linear(), (array, Y))


def test_numbers_that_32_bits_cannot_hold_are_refused():
    with pytest.raises(hp.InputError, match="which overflows float32"):
        fit(linear(), (X * 1e300, Y))


def test_arrays_share_their_memory_also_those_that_may_only_be_read():
    array = X.copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tensor,) = to_tensors((array,))
    assert tensor.data_ptr() == array.ctypes.data
    pair = (torch.zeros(2), {"a": torch.zeros(2)})
    assert to_tensors(pair) is pair
    assert torch.equal(to_tensors(X[::-1]), torch.tensor(X[::-1].copy()))


def test_where_nothing_is_converted_inputs_are_the_same_object():
    x = {"a": torch.zeros(2, 4)}
    place = BatchTransform(torch.device("cpu"), cast=Cast())
    assert place.cast.learn(linear(), x["a"], torch.zeros(2)) == []
    assert place.inputs(x) is x


def test_validation_data_of_another_type_are_converted_and_said():
    valid = DataLoader(Items(X, Y), 16)
    result = fit(linear(), (torch.tensor(X).float(), torch.tensor(Y)), valid, test=(X, Y))
    assert any(note.endswith("inputs were converted from float64 to float32") for note in result.notes)
    assert result.metrics["test_loss"] == pytest.approx(result.metrics["valid_loss"])


@pytest.mark.parametrize("tricks", [hp.Tricks(mixup=hp.Mixup()), hp.Tricks(transfer=hp.Transfer(mode="head"))])
def test_tricks_see_converted_inputs(tricks: hp.Tricks):
    floats = torch.tensor(IMAGES) / 255, torch.tensor(Y)
    result, again = fit(net(), (IMAGES, Y), (IMAGES, Y), tricks=tricks), fit(net(), floats, floats, tricks=tricks)
    assert torch.equal(weights(result), weights(again))
    assert result.metrics == pytest.approx(again.metrics)


def test_augmentation_of_ones_own_is_given_what_the_data_hold():
    def halves(images):
        assert images.dtype is torch.uint8
        return images // 2

    result = fit(net(), (IMAGES, Y), augment=halves)
    assert torch.equal(weights(result), weights(fit(net(), (torch.tensor(IMAGES // 2) / 255, torch.tensor(Y)))))


def test_a_resumed_run_converts_alike(tmp_path):
    whole = fit(net(), (IMAGES, Y), (IMAGES, Y), weights="last")
    fit(net(), (IMAGES, Y), (IMAGES, Y), weights="last", epochs=2, max_seconds=1e-9, run_dir=tmp_path / "run")
    run = fit(net(), (IMAGES, Y), (IMAGES, Y), weights="last", run_dir=tmp_path / "run", resume=True)
    assert torch.equal(weights(run), weights(whole))


@pytest.mark.usefixtures("forked")
def test_two_workers_convert_alike():
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
    two, one = fit(net(), (IMAGES, Y), (IMAGES, Y), tricks=tricks), fit(net(), (IMAGES, Y), (IMAGES, Y))
    assert torch.allclose(weights(two), weights(one), atol=1e-5)
    assert "uint8 images were scaled to [0, 1]" in two.notes


def test_arms_of_a_race_convert_alike():
    race = hp.race(
        lambda: nn.Linear(4, 3),
        (X, Y),
        (X, Y),
        optimizer=sgd,
        epochs=1,
        batch_size=32,
        target=0.99,
        tricks=hp.Tricks(label_smoothing=hp.LabelSmoothing()),
        arms=["plain", "all"],
        seeds=1,
        tune=0,
    )
    assert [arm["runs"][0]["status"] for arm in race.record["arms"]] == ["missed", "missed"]


def test_a_trained_model_predicts_from_what_it_was_trained_on(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    result = fit(model, (IMAGES, Y), run_dir=tmp_path / "run")
    loaded = hp.load_run(tmp_path / "run", model=nn.Sequential(nn.Flatten(), nn.Linear(192, 3)))
    said = loaded.predict(IMAGES[:4])
    shares = result.model(torch.tensor(IMAGES[:4]) / 255).softmax(1).amax(1)
    assert [one.probability for one in said] == pytest.approx(shares.tolist(), rel=1e-5)


DEEP = RANDOM.integers(0, 65536, (64, 3, 8, 8), dtype=np.uint16)


@pytest.mark.parametrize("kind", ["array", "tensor", "items", "loader", "dict"])
def test_images_of_16_bits_are_scaled_as_those_of_8(kind: str):
    labels = torch.tensor(Y)
    data = {
        "array": (DEEP, Y),
        "tensor": (torch.tensor(DEEP), labels),
        "items": Items(DEEP, Y),
        "loader": DataLoader(Items(DEEP, Y), 16, sampler=epoch_order(64, 0, 0).tolist()),
        "dict": ({"input": DEEP}, Y),
    }[kind]
    model = net()
    if kind == "dict":
        model.forward = lambda input: nn.Sequential.forward(model, input)
    result = fit(model, data, data, epochs=1)
    divided = fit(net(), (torch.tensor(DEEP.astype(np.float32)) / 65535, labels), epochs=1)
    torch.testing.assert_close(weights(result), weights(divided), rtol=0, atol=1e-6)
    assert any("uint16 images were scaled to [0, 1]" in note for note in result.notes)
    assert DEEP.max() > 60000, "the user's are as they were"


def test_images_of_16_bits_are_cropped_and_small_ones_of_0_and_1_stay():
    result = fit(net(), (DEEP, Y), augment=hp.CropFlip(padding=1))
    assert "uint16 images were scaled to [0, 1]" in result.notes
    result = fit(net(), (DEEP % 2, Y))
    assert "inputs were converted from uint16 to float32" in result.notes


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_tokens_and_labels_of_unsigned_types_stay_integers(dtype: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    tokens = torch.randint(0, 9, (64, 5))
    result = fit(model, (tokens.to(getattr(torch, dtype)), torch.tensor(Y).to(getattr(torch, dtype))))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(20, 3))
    assert torch.equal(weights(result), weights(fit(model, (tokens, torch.tensor(Y)))))


COMPLEX = torch.complex(torch.tensor(X), torch.tensor(X))


class Size(nn.Module):
    """Takes complex inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = linear()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.abs())


def test_complex_inputs_are_taken_where_the_model_takes_them_and_else_are_one_clear_error():
    y = torch.tensor(Y)
    half = fit(Size(), (COMPLEX.to(torch.complex64), y))
    wide = fit(Size(), (COMPLEX, y))
    assert torch.equal(weights(wide), weights(half))
    assert "inputs were converted from complex128 to complex64" in wide.notes
    loader = DataLoader(torch.utils.data.TensorDataset(COMPLEX, y), 16)
    for data in ((COMPLEX, y), (COMPLEX.to(torch.complex64), y), loader, (COMPLEX.numpy(), Y)):
        with pytest.raises(hp.InputError, match=r"inputs are complex\d+, which Linear does not accept .*view_as_real"):
            fit(linear(), data)
    with pytest.raises(hp.InputError, match="valid: inputs are complex128"):
        fit(linear(), (X, Y), (COMPLEX, y))
    with pytest.raises(hp.InputError, match="inputs are complex128"):
        hp.evaluate(linear(), (COMPLEX, y))
    bad = COMPLEX.clone()
    bad[5] = torch.nan
    with pytest.raises(hp.InputError, match="hold NaN or infinity, first in sample 5"):
        fit(Size(), (bad, y))


def test_complex_outputs_and_targets_need_a_loss_of_ones_own():
    own = lambda output, targets: (output - targets).abs().square().mean()  # noqa: E731
    targets = torch.complex(torch.zeros(64, 3), torch.ones(64, 3))
    for loss in (None, "mse", nn.L1Loss(), "cross_entropy"):
        with pytest.raises(hp.InputError, match=r"targets of type complex64 and loss=.*custom loss"):
            fit(linear(), (X, targets), loss=loss)
    model = nn.Linear(4, 3, dtype=torch.complex64)
    for loss, wanted in ((None, Y), ("mse", targets)):
        with pytest.raises(hp.InputError, match=r"outputs of type complex64"):
            fit(model, (COMPLEX, wanted), loss=loss)
    assert fit(model, (COMPLEX, targets), loss=own).steps["applied"] == 8


@pytest.mark.parametrize("dtype", [torch.quint8, torch.qint8, torch.qint32])
def test_quantized_inputs_are_one_clear_error(dtype: torch.dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = torch.quantize_per_tensor(torch.tensor(X).float(), 0.1, 0, dtype), torch.tensor(Y)
        for data in ((x, y), torch.utils.data.TensorDataset(x, y)):
            with pytest.raises(hp.InputError, match=r"inputs are quantized.*dequantize\(\)"):
                fit(linear(), data)
        with pytest.raises(hp.InputError, match="quantized"):
            fit(linear(), (X, Y), (x, y))


def test_numbers_of_8_bits_are_converted():
    x = torch.tensor(X).to(torch.float8_e4m3fn)
    result = fit(linear(), (x, Y))
    assert torch.equal(weights(result), weights(fit(linear(), (x.float(), Y))))
