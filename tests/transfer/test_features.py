"""Frozen features that are computed once: the same training with fewer passes."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.pretrained.models import resnet
from heptane.pretrained.split import find_split

adamw = partial(torch.optim.AdamW, lr=0.05)


class Counting(torch.nn.Module):
    """Counts the samples that pass, and leaves them as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, x):
        self.seen += len(x)
        return x


class Block(torch.nn.Module):
    """A way around: what a chain of modules cannot cut into."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(width, width)

    def forward(self, x):
        return x + self.layer(x).relu()


class Net(torch.nn.Module):
    """Convolution and BatchNorm, a view, a block, dropout and a head."""

    def __init__(self, dropout: float = 0.0, early_dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.count = Counting()
        self.conv, self.norm = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4)
        self.early = torch.nn.Dropout(early_dropout)
        self.block = Block(64)
        self.dropout, self.head = torch.nn.Dropout(dropout), torch.nn.Linear(64, 3)

    def forward(self, x):
        x = self.early(self.norm(self.conv(self.count(x))).relu())
        return self.head(self.dropout(self.block(x.view(len(x), -1))))


def data(count: int = 48):
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 3
    return torch.randn(count, 1, 6, 6, generator=draw) + y.view(-1, 1, 1, 1), y


def fitted(model=None, *, epochs=4, transfer=None, tricks=None, train=None, **settings):
    model = Net() if model is None else model
    chosen = hp.Tricks(transfer=hp.Transfer(freeze=-1, rate_factor=1.0, **(transfer or {})), **(tricks or {}))
    given = {"optimizer": adamw, "epochs": epochs, "batch_size": 8, "tricks": chosen, **settings}
    result = hp.fit(model, data() if train is None else train, data(24), **given)
    return model, result


def weights(model):
    return torch.cat([v.detach().flatten().double() for v in model.state_dict().values()])


def note(result):
    (found,) = [line for line in result.notes if "frozen features" in line]
    return found


class Encoder(torch.nn.Module):
    """PyTorch's own encoder, whose layers take nested tensors in eval mode; these have no shape."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.words, self.encoder = torch.nn.Embedding(11, 8), torch.nn.TransformerEncoder(layer, 2)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, words):
        return self.head(self.encoder(self.words(words), src_key_padding_mask=words == 0).sum(1))


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("frozen", [1, 3])
def test_nested_tensors_inside_a_model_do_not_matter(frozen):
    words = torch.randint(1, 11, (48, 5), generator=torch.Generator().manual_seed(0))
    labels = words[:, 0] % 3
    words[::2, 4:] = 0
    fits = []
    for cache in ("off", "auto"):
        tricks = hp.Tricks(transfer=hp.Transfer(freeze=frozen, rate_factor=1.0, cache=cache))
        given = {"optimizer": adamw, "epochs": 2, "batch_size": 8, "tricks": tricks}
        fits.append(hp.fit(Encoder(), (words, labels), (words, labels), **given))
    assert fits[0].metrics == pytest.approx(fits[1].metrics, rel=1e-4)
    assert ("48 samples of 8 features" in note(fits[1])) == (frozen == 3)


@pytest.mark.parametrize("cache", ["auto", "memory", "disk"])
def test_it_trains_as_without(cache):
    (plain, before), (model, after) = (fitted(transfer={"cache": kind}) for kind in ("off", cache))
    torch.testing.assert_close(weights(model), weights(plain))
    assert after.metrics == pytest.approx(before.metrics, rel=1e-5)
    assert [r["train_loss"] for r in after.history] == pytest.approx([r["train_loss"] for r in before.history], rel=1e-4)
    assert "48 samples of 64 features" in note(after)
    assert ("on the disk" in note(after)) == (cache == "disk")


def test_each_sample_passes_through_the_frozen_part_once():
    seen = {cache: fitted(transfer={"cache": cache}, epochs=10)[0].count.seen for cache in ("off", "memory")}
    assert seen["off"] >= 10 * (48 + 24)
    assert seen["memory"] < 48 + 24 + 30  # and a few to look where to cut


def test_nothing_is_left_in_the_folder_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    fitted(transfer={"cache": "disk"})
    assert list(tmp_path.iterdir()) == []


def test_dropout_before_the_head_stays_random():
    torch.testing.assert_close(*(weights(fitted(Net(dropout=0.5), transfer={"cache": c})[0]) for c in ("off", "memory")))


def test_dropout_in_the_frozen_part_that_is_in_eval_mode_does_not_matter():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Sequential(torch.nn.Linear(36, 8), torch.nn.Dropout(0.5)), torch.nn.Linear(8, 3)
    )
    _, result = fitted(model)
    assert "48 samples of 8 features" in note(result)


def test_what_is_random_before_the_frozen_parts_end_is_not_kept():
    _, result = fitted(Net(early_dropout=0.5))
    assert "not cached" in note(result)
    assert "random" in note(result)


def test_statistics_stand_still_and_no_hook_is_left():
    model, _ = fitted()
    assert int(model.norm.num_batches_tracked) == 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_more_than_the_head_may_train():
    """The block and the head follow the view."""
    tricks = [hp.Tricks(transfer=hp.Transfer(freeze=1, rate_factor=1.0, cache=c)) for c in ("off", "memory")]
    models = []
    for chosen in tricks:
        model = Net(dropout=0.2)
        result = hp.fit(model, data(), optimizer=adamw, epochs=3, batch_size=8, tricks=chosen)
        models.append(weights(model))
    assert "48 samples of 64 features" in note(result)
    torch.testing.assert_close(*models)


def test_each_phase_has_its_own():
    (plain, _), (model, result) = (
        fitted(transfer={"unfreeze_every_epochs": 2.0, "cache": c}, epochs=8, tricks={"cyclical": hp.Cyclical()})
        for c in ("off", "auto")
    )
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-3, atol=1e-4)
    assert len([line for line in result.notes if "frozen features" in line]) == 2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"augment": hp.CropFlip()}, "augmentation"),
        ({"resize": hp.ProgressiveResize(size=4)}, "resizing"),
        ({"epochs": 1}, "frozen for an epoch or less"),
        ({"tricks": {"mixup": hp.Mixup()}}, "mixup"),
        ({"tricks": {"mixup": hp.Mixup(layer="conv")}}, "mixup"),
        ({"train": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data()), 8)}, "DataLoader"),
    ],
)
def test_where_inputs_change_it_says_so(settings, reason):
    settings = {"batch_size": None} | settings if "train" in settings else settings
    _, result = fitted(**settings) if "resize" not in settings else fitted(Pooled(), **settings)
    assert "not cached" in note(result)
    assert reason in note(result)


class Pooled(torch.nn.Module):
    """Takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = torch.nn.Conv2d(1, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.pool(self.conv(x)).flatten(1))


def test_mixup_after_the_cut_is_the_same():
    mixup = {"mixup": hp.Mixup(layer="dropout")}
    pairs = [fitted(Net(dropout=0.2), tricks=mixup, transfer={"cache": c}, accumulate=2) for c in ("off", "memory")]
    torch.testing.assert_close(*(weights(model) for model, _ in pairs))
    assert "48 samples" in note(pairs[1][1])


@pytest.mark.parametrize(("dtype", "size"), [("fp16", 2), ("bf16", 2), ("fp32", 4)])
def test_in_fewer_bits(dtype, size):
    model, result = fitted(transfer={"cache_dtype": dtype})
    assert f"{48 * 64 * size / 2**20:.3g} MiB" in note(result)
    plain, _ = fitted(transfer={"cache": "off"})
    torch.testing.assert_close(weights(model), weights(plain), rtol=0.05, atol=0.05)


def test_features_that_do_not_fit_into_16_bits_are_an_error():
    model = Net()
    with torch.no_grad():
        model.block.layer.weight.mul_(1e6)
    with pytest.raises(hp.InputError, match=r"cache_dtype='float16' cannot hold .*bf16"):
        fitted(model, transfer={"cache_dtype": "fp16"})


def test_a_disk_without_room_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=5))
    with pytest.raises(hp.InputError, match="TMPDIR"):
        fitted(transfer={"cache": "disk"})


def test_under_16_bit_arithmetic_they_are_what_it_gives():
    _, result = fitted(tricks={"mixed_precision": hp.MixedPrecision(dtype="bf16", channels_last="off")})
    assert "bfloat16" in note(result) or "float32" in note(result)


def test_a_resumed_run_is_bitwise_the_same(tmp_path):
    whole, _ = fitted(run_dir=tmp_path / "whole")
    settings = {"run_dir": tmp_path / "cut", "evaluate_every_epochs": 0.5}
    fitted(epochs=4, max_seconds=1e-9, **settings)
    model, result = fitted(resume=True, **settings)
    assert result.steps["applied"] == 24
    assert torch.equal(weights(model), weights(whole))


def test_functions_as_metrics_see_the_whole_model_and_the_data():
    seen = []
    fitted(metrics={"shape": lambda model, data: seen.append((type(model), tuple(data[0].shape))) or 0.0})
    assert set(seen) == {(Net, (24, 1, 6, 6))}  # before training too, since it may know how many there are


@pytest.mark.parametrize("cache", ["off", "memory"])
def test_functions_as_metrics_see_a_model_in_eval_mode_and_training_goes_on_in_its_own(cache):
    model, seen, trained = Net(dropout=0.5), [], []
    model.dropout.register_forward_pre_hook(lambda module, _: trained.append(module.training))

    def modes(model, _):
        seen.extend(module.training for module in model.modules())
        return 0.0

    fitted(model, transfer={"cache": cache}, metrics={"modes": modes}, evaluate_every_epochs=0.5)
    assert set(seen) == {False}
    assert sum(trained) >= 24


def test_averaged_weights_are_evaluated_too():
    pairs = [fitted(transfer={"cache": c}, average_decay=0.9) for c in ("off", "memory")]
    torch.testing.assert_close(*(weights(model) for model, _ in pairs))
    assert pairs[0][1].metrics == pytest.approx(pairs[1][1].metrics, rel=1e-4)


def test_nan_in_a_feature_names_the_sample():
    model = Net()
    model.conv.weight.data.fill_(1)
    x, y = data()
    x[5] = 3e38
    _, result = fitted(model, train=(x, y))
    assert any("5" in line and "gradients are not finite" in line for line in result.notes)


def test_a_user_who_froze_the_body_needs_no_freeze():
    model = Net()
    for module in (model.conv, model.norm, model.block):
        module.requires_grad_(False)
    result = hp.fit(
        model, data(), optimizer=adamw, epochs=3, batch_size=8, tricks=hp.Tricks(transfer=hp.Transfer(rate_factor=1.0))
    )
    assert "48 samples of 64 features" in note(result)


@pytest.mark.usefixtures("forked")
def test_two_workers_share_the_work():
    tricks = {"data_parallel": hp.DataParallel(workers=2)}
    (plain, _), (model, result) = (fitted(transfer={"cache": c}, tricks=t) for c, t in (("off", {}), ("auto", tricks)))
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-4, atol=1e-5)
    assert "48 samples of 64 features" in note(result)


def test_a_model_that_takes_a_dict():
    class Text(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 3)

        def forward(self, ids, attention_mask):
            return self.head((self.embedding(ids) * attention_mask[..., None]).mean(1))

    ids = torch.randint(0, 9, (48, 5), generator=torch.Generator().manual_seed(0))
    train = {"ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 3}
    found = []
    for cache in ("off", "auto"):
        model = Text()
        tricks = hp.Tricks(transfer=hp.Transfer(freeze=-1, rate_factor=1.0, cache=cache))
        result = hp.fit(model, train, train, optimizer=adamw, epochs=3, batch_size=8, tricks=tricks)
        found.append(weights(model))
    assert "48 samples of 4 features" in note(result)
    torch.testing.assert_close(*found)


def test_a_head_whose_output_is_changed_on_the_way_out_is_left_alone():
    class Scaled(Net):
        def forward(self, x):
            return 3 * super().forward(x)

    _, result = fitted(Scaled())
    assert "not cached" in note(result)


class Tied(torch.nn.Module):
    """A frozen block between an embedding and a head that share their weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.block, self.head = torch.nn.Embedding(9, 8), Block(8), torch.nn.Linear(8, 9, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids):
        return self.head(self.block(self.embedding(ids)).mean(1))


@pytest.mark.parametrize("precision", [None, hp.MixedPrecision(dtype="bf16")])
def test_what_trains_before_the_frozen_part_too_is_not_kept(precision):
    ids = torch.randint(0, 9, (48, 5), generator=torch.Generator().manual_seed(0))
    found = []
    for cache in ("off", "memory"):
        model = Tied()
        tricks = hp.Tricks(transfer=hp.Transfer(freeze=-1, rate_factor=1.0, cache=cache), mixed_precision=precision)
        result = hp.fit(model, (ids, ids[:, 0]), optimizer=adamw, epochs=3, batch_size=8, tricks=tricks)
        found.append(weights(model))
    assert "is also used before" in note(result)
    torch.testing.assert_close(*found)


def dropped(x, training):
    return torch.nn.functional.dropout(x, 0.5, training)


class Functional(Net):
    """What is done in no module: ``between`` the last two, and at ``last``."""

    def __init__(self, between=lambda x, _: x, last=lambda x, _: x) -> None:
        super().__init__()
        self.fresh = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64))
        self.between, self.last = between, last

    def forward(self, x):
        x = self.block(self.norm(self.conv(x)).relu().view(len(x), -1))
        return self.last(self.head(self.between(self.fresh(x), self.training)), self.training)


def split_of(model, *trained):
    """Where ``model`` is cut if no others train; it leaves no mark."""
    model.requires_grad_(False)
    for module in trained:
        module.requires_grad_(True)
    hp.train_mode(model)
    before = [weights(model), torch.get_rng_state()]
    found = find_split(model, data()[0][:4])
    assert all(map(torch.equal, before, [weights(model), torch.get_rng_state()]))
    return found


@pytest.mark.parametrize(
    "done",
    [{"between": dropped}, {"last": dropped}, {"last": lambda x, training: (x, x) if training else x}],
    ids=["between", "last", "two outputs"],
)
def test_what_only_training_does_is_not_left_out_where_it_is_in_no_module(done):
    model = Functional(**done)
    assert "not in a module" in split_of(model, model.fresh, model.head)
    model = Functional()
    assert split_of(model, model.fresh, model.head).tail == [model.fresh, model.head]


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_tail_that_changes_its_input_in_place_does_not_change_what_is_kept(cache):
    found = []
    for kind in ("off", cache):
        model = Net()
        model.head = torch.nn.Sequential(torch.nn.SiLU(inplace=True), torch.nn.Dropout(0.5, inplace=True), model.head)
        _, result = fitted(model, transfer={"cache": kind}, epochs=6)
        found.append((weights(model), result.metrics["valid_loss"]))
    assert "48 samples of 64 features" in note(result)
    torch.testing.assert_close(*found)


def test_the_cut_is_as_late_as_can_be():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    model[1].requires_grad_(False)
    cut = find_split(model, data()[0])
    assert cut.tail == [model[3]]


class Convolutions(torch.nn.Module):
    """Blocks that are called with settings, and a function before the head, as the usual networks for images."""

    def __init__(self, shaped=lambda x: torch.flatten(x, 1)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = torch.nn.ModuleList([Step(1), Step(4), Step(4)])
        self.pool, self.head = torch.nn.AdaptiveAvgPool2d(2), torch.nn.Linear(16, 3)
        self.shaped = shaped

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            x = block(x, scale=1.0 + number)
        return self.head(self.shaped(self.pool(x)))


class Step(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = torch.nn.Conv2d(width, 4, 3, padding=1)

    def forward(self, x, scale=1.0):
        return scale * self.layer(x).relu()


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_another_shape_and_settings_between_two_modules_do_not_matter(frozen):
    found = []
    for cache in ("off", "memory"):
        model = Convolutions()
        tricks = hp.Tricks(transfer=hp.Transfer(freeze=frozen, rate_factor=1.0, cache=cache))
        result = hp.fit(model, data(), data(24), optimizer=adamw, epochs=3, batch_size=8, tricks=tricks)
        found.append((weights(model), result.metrics["valid_loss"]))
    assert f"48 samples of {16 if frozen == 3 else 144} features" in note(result)
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "shaped", [lambda x: x.flatten(1) + 1, lambda x: x.flatten(1).mul_(2), lambda x: x.flatten(1).flip(1)]
)
def test_what_else_is_done_between_two_modules_is_no_shape(shaped):
    model = Convolutions(shaped)
    tricks = hp.Tricks(transfer=hp.Transfer(freeze=2, rate_factor=1.0))
    assert "not cached" in note(hp.fit(model, data(), optimizer=adamw, epochs=3, batch_size=8, tricks=tricks))


def test_it_is_found_for_the_built_in_network_at_each_depth():
    data = torch.randn(16, 1, 16, 16), torch.arange(16) % 3
    tricks = hp.Tricks(transfer=hp.Transfer(freeze=-1, unfreeze_every_epochs=2.0))
    run = assemble(resnet(3), data, Plan.of(optimizer=adamw, epochs=9, batch_size=8), tricks)
    for phase in run.phases[:4]:
        _, source = run.enter(phase)
        assert source is not run.source, phase


@pytest.mark.usefixtures("forked")
def test_several_workers_keep_them_on_the_disk_too():
    tricks = {"data_parallel": hp.DataParallel(workers=2)}
    (plain, _), (model, result) = (fitted(transfer={"cache": c}, tricks=t) for c, t in (("off", {}), ("disk", tricks)))
    torch.testing.assert_close(weights(model), weights(plain), rtol=1e-4, atol=1e-5)
    assert "on the disk" in note(result)


@pytest.mark.parametrize(("available", "where"), [(1e12, "in memory"), (1e3, "on the disk"), (float("inf"), "in memory")])
def test_auto_takes_the_disk_where_memory_is_short(monkeypatch, available, where):
    monkeypatch.setattr("heptane.pretrained.features.available_memory_bytes", lambda: available)
    assert where in note(fitted(transfer={"cache": "auto"})[1])
