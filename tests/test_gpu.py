"""What needs a CUDA device: NCCL, fp16 with loss scaling, bf16, compilation, CUDA graphs, data on the device."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.helpers import assert_equal_weights, by_hand, sgd, shuffled

import heptane as hp
from heptane.assemble import assemble
from heptane.core.fit_options import Plan
from heptane.data import batches
from heptane.pretrained.models import resnet

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores", "ignore:The CUDA Graph is empty"),  # its compiler's
]


def images(num_samples: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (num_samples,), generator=random)
    patterns = torch.randn(4, 1, 12, 12, generator=random)
    return patterns[labels] + 0.5 * torch.randn(num_samples, 1, 12, 12, generator=random), labels


def fit_resnet(tricks: hp.Tricks, **settings: object) -> hp.Result:
    torch.manual_seed(0)
    data = images()
    return hp.fit(resnet(4), data, data, optimizer=sgd, epochs=4, batch_size=64, tricks=tricks, **settings)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "auto"])
def test_every_precision_learns_on_the_gpu(dtype: str) -> None:
    result = fit_resnet(hp.Tricks(mixed_precision=hp.MixedPrecision(dtype=dtype), cyclical=hp.Cyclical()))
    assert next(result.model.parameters()).device.type == "cuda"
    assert all(p.dtype is torch.float32 for p in result.model.parameters())
    assert result.metrics["valid_accuracy"] > 0.9


def test_fp16_counts_the_steps_that_a_scale_too_large_skips() -> None:
    result = fit_resnet(hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp16", scale=2.0**60)))
    assert result.steps["skipped"] > 0
    assert result.steps["applied"] == result.steps["planned"] == 32
    assert result.metrics["valid_accuracy"] > 0.9


def test_off_is_plain_on_the_gpu() -> None:
    data, torch.backends.cudnn.deterministic = images(), True
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(144, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4)).cuda()
    plain = copy.deepcopy(model)
    for _ in hp.train(model, data, optimizer=sgd, epochs=1, batch_size=64):
        pass
    batches = ((x.cuda(), y.cuda()) for x, y in shuffled(data, 64))
    assert_equal_weights(model, by_hand(plain, batches))


@pytest.mark.parametrize(("mode", "accumulate"), [(True, 1), (True, 2), ("reduce-overhead", 1)])
def test_compiled_trains_alike(mode: bool | str, accumulate: int) -> None:
    eager = fit_resnet(hp.Tricks(), accumulate=accumulate)
    compiled = fit_resnet(hp.Tricks(), accumulate=accumulate, compile=mode)
    assert compiled.metrics["valid_accuracy"] > 0.9
    for ours, theirs in zip(compiled.model.parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_every_trick_together_in_graphs() -> None:
    tricks = hp.Tricks(
        lr_scaling=hp.LRScaling(reference_batch=32),
        cyclical=hp.Cyclical(),
        mixup=hp.Mixup(alpha=0.1),
        label_smoothing=hp.LabelSmoothing(eps=0.05),
        mixed_precision=hp.MixedPrecision(dtype="fp16", channels_last="on"),
    )
    resize, settings = hp.ProgressiveResize(size=8), {"average_decay": 0.9, "clip_norm": 5.0, "compile": "reduce-overhead"}
    assert fit_resnet(tricks, augment=hp.CropFlip(padding=1), resize=resize, **settings).metrics["valid_accuracy"] > 0.5


def test_data_that_fits_lies_on_the_gpu_and_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cudnn.deterministic = True
    run = assemble(resnet(4), images(), Plan.of(optimizer=partial(torch.optim.SGD, lr=0.1), epochs=1, batch_size=64))
    assert run.source.inputs.is_cuda
    assert run.source.targets.is_cuda
    kept = fit_resnet(hp.Tricks(mixup=hp.Mixup(per_sample=True)), augment=hp.CropFlip())
    monkeypatch.setattr(batches, "SHARE_OF_GPU", 0)
    brought = fit_resnet(hp.Tricks(mixup=hp.Mixup(per_sample=True)), augment=hp.CropFlip())
    for ours, theirs in zip(kept.model.parameters(), brought.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_that_is_resumed_ends_as_one_never_stopped(tmp_path: Path) -> None:
    torch.backends.cudnn.deterministic = True
    tricks = hp.Tricks(mixed_precision=hp.MixedPrecision(dtype="fp16", channels_last="off"), cyclical=hp.Cyclical())
    whole = fit_resnet(tricks, run_dir=tmp_path / "whole")
    assert fit_resnet(tricks, run_dir=tmp_path / "cut", target=("valid_loss", 1e9)).steps["applied"] < 32
    cut = fit_resnet(tricks, run_dir=tmp_path / "cut", resume=True)
    for ours, theirs in zip(cut.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("cache", ["memory", "disk", "off"])
def test_a_head_trains_on_features_computed_once(cache: str) -> None:
    model = fit_resnet(hp.Tricks()).model
    torch.nn.init.zeros_(model.head.weight)
    tricks = hp.Tricks(transfer=hp.Transfer(mode="head", cache=cache), mixed_precision=hp.MixedPrecision(dtype="bf16"))
    result = hp.fit(model, images(), images(), optimizer=sgd, epochs=2, batch_size=64, tricks=tricks)
    assert result.metrics["valid_accuracy"] > 0.9


def test_nccl_with_as_many_workers_as_gpus() -> None:
    workers = torch.cuda.device_count()
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=workers), mixed_precision=hp.MixedPrecision(dtype="bf16"))
    assert fit_resnet(tricks).metrics["valid_accuracy"] > 0.9
