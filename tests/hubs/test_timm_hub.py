"""timm's models: built for the images at hand, and filled from timm's own cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from heptane import InputError, load_weights
from heptane.pretrained.models import build

timm = pytest.importorskip("timm", exc_type=ImportError)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A test_vit whose weights are, under its default tag, in the cache of a machine without network."""
    from huggingface_hub import constants

    model: nn.Module = timm.create_model("test_vit")
    snapshot = tmp_path / "models--timm--test_vit.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return model


@pytest.mark.parametrize("name", ["test_vit", "test_vit.r160_in1k"])
def test_weights_come_from_the_cache_and_the_tag_is_named(trained: nn.Module, name: str) -> None:
    model = timm.create_model("test_vit")
    random = torch.get_rng_state()
    report = load_weights(model, f"timm:{name}", min_match=1.0)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    assert report.source == f"pretrained weights test_vit.r160_in1k of timm {timm.__version__}"


def test_a_model_for_smaller_grey_images_is_adapted_as_timm_does(trained: nn.Module) -> None:
    from timm.layers import resample_abs_pos_embed

    model = build("timm:test_vit", input_shape=(1, 64, 64), num_classes=3)
    assert model(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    report = load_weights(model, "timm:test_vit", min_match=1.0)
    assert report.resized["pos_embed"] == "101 -> 17 positions: grid 10x10 -> 4x4, bicubic; 1 prefix token kept"
    assert report.resized["patch_embed.proj.weight"] == "3 -> 1 input channels, summed"
    expected = resample_abs_pos_embed(trained.get_parameter("pos_embed"), [4, 4])
    assert torch.equal(model.get_parameter("pos_embed"), expected)


@pytest.mark.parametrize(("spec", "said"), [
    ("timm:test_vit2", "timm could not load its weights .*; load it once online"),
    ("timm:test_vit.no_tag", r"no pretrained weights under this name; it has test_vit\.r160_in1k"),
    ("timm:test_vitt", r"timm has no such model \(did you mean test_vit"),
    ("timm:", "timm has no such model"),
    ("timm:resnet10t.", "timm has no pretrained weights under this name"),
])  # fmt: skip
def test_weights_that_cannot_be_had_are_one_line(trained: nn.Module, spec: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_weights(nn.Linear(2, 2), spec)
    assert str(caught.value).startswith(f"weights='{spec}'")
    assert len(str(caught.value).splitlines()) == 1
