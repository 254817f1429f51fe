"""Hugging Face models: built from config.json, filled from a folder or the cache, without network or remote code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from heptane import InputError, load_weights
from heptane.cli import main
from heptane.pretrained.models import build

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
COMMIT = "0123456789" * 4


def made(kind: str, **options: Any) -> Any:
    if kind == "bert":
        config = transformers.BertConfig(**SMALL, vocab_size=40, max_position_embeddings=12, **options)
        return transformers.BertForSequenceClassification(config)
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, **options)
    return transformers.ViTForImageClassification(config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved model of each kind, in several parts: 5 classes."""
    found = {}
    for kind in ("bert", "vit"):
        torch.manual_seed(3)
        found[kind] = tmp_path_factory.mktemp(kind)
        made(kind, num_labels=5).save_pretrained(found[kind], max_shard_size="8KB")
        assert len(list(found[kind].glob("model-*-of-*.safetensors"))) > 2
    return found


def sample(kind: str) -> torch.Tensor:
    return torch.arange(2 * 8).view(2, 8) if kind == "bert" else torch.linspace(-1, 1, 2 * 3 * 256).view(2, 3, 16, 16)


@pytest.mark.parametrize(("kind", "shape"), [("bert", (8,)), ("vit", (3, 16, 16))])
def test_a_model_built_from_its_config_and_filled_answers_as_the_saved_one(
    folders: dict[str, Path], kind: str, shape: tuple[int, ...]
) -> None:
    spec = f"hf:{folders[kind]}"
    model = build(spec, input_shape=shape, num_classes=5)
    random = torch.get_rng_state()
    report = load_weights(model, spec, min_match=1.0)
    assert torch.equal(torch.get_rng_state(), random)
    saved = type(model).from_pretrained(folders[kind])  # transformers' own reading
    with torch.no_grad():
        assert torch.equal(model.eval()(sample(kind)).logits, saved.eval()(sample(kind)).logits)
    assert (report.share, report.missing, report.unexpected, report.resized) == (1.0, (), (), {})
    assert str(report).startswith(f"source: {spec}: model.safetensors.index.json\n")


def test_images_of_another_size_and_colour_and_classes_are_adapted_and_the_rules_named(folders: dict[str, Path]) -> None:
    model = build(f"hf:{folders['vit']}", input_shape=(1, 32, 32), num_classes=3)
    assert model(torch.zeros(2, 1, 32, 32)).logits.shape == (2, 3)
    report = load_weights(model, folders["vit"], min_match=1.0)
    assert set(report.resized.values()) == {
        "17 -> 65 positions: grid 4x4 -> 8x8, bicubic; 1 prefix token kept",
        "3 -> 1 input channels, summed",
    }
    assert set(report.left_out) == {"classifier.weight", "classifier.bias"}


def test_a_body_alone_fills_the_body_of_a_classifier_and_the_head_stays(tmp_path: Path) -> None:
    for kind, body in (("bert", "BertModel"), ("vit", "ViTModel")):
        model = made(kind)
        source = getattr(transformers, body)(model.config)
        source.save_pretrained(tmp_path / kind)
        head = model.classifier.weight.detach().clone()
        report = load_weights(model, tmp_path / kind)
        assert torch.equal(model.classifier.weight, head)
        assert "classifier.weight" in report.missing
        name = next(n for n in source.state_dict() if n.endswith("position_embeddings") or "position_embeddings.w" in n)
        assert torch.equal(model.state_dict()[f"{model.base_model_prefix}.{name}"], source.state_dict()[name])


def test_a_model_inside_another_module_is_filled_too(folders: dict[str, Path]) -> None:
    inner = made("vit", num_labels=5)
    report = load_weights(nn.ModuleDict({"module": inner}), folders["vit"], min_match=1.0)
    assert report.prefix == "(none) -> module."
    assert torch.equal(
        inner.state_dict()["classifier.weight"], type(inner).from_pretrained(folders["vit"]).classifier.weight
    )


def test_one_pickle_and_one_file_are_read_like_parts(folders: dict[str, Path], tmp_path: Path) -> None:
    source = made("bert", num_labels=5)
    source.config.save_pretrained(tmp_path)
    torch.save(source.state_dict(), tmp_path / "pytorch_model.bin")
    model = made("bert", num_labels=5)
    assert load_weights(model, f"hf:{tmp_path}", min_match=1.0).share == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True))


def test_the_same_seed_builds_the_same_model(folders: dict[str, Path]) -> None:
    models = []
    for seed in (3, 3):
        torch.manual_seed(seed)
        models.append(build(f"hf:{folders['vit']}", input_shape=(3, 16, 16), num_classes=2))
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize(("kind", "shape", "said"), [
    ("vit", (8,), r"takes images of \(channels, height, width\), got samples of shape \(8,\)"),
    ("bert", (3, 8, 8), r"takes text as token numbers, got samples of shape \(3, 8, 8\)"),
    ("vit", (3, 2, 16), "cuts images into patches of 4x4, and these are 2x16"),
])  # fmt: skip
def test_data_that_a_model_does_not_take_is_refused(folders: dict[str, Path], kind: str, shape: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        build(f"hf:{folders[kind]}", input_shape=shape, num_classes=2)


VIT: dict[str, Any] = {"model_type": "vit", **SMALL, "patch_size": 4}


@pytest.mark.parametrize(("content", "said"), [
    ("{", "config.json is damaged: it is not JSON"),
    ("[]", "config.json holds a list, not an object"),
    ({}, "model_type None in config.json is not known to transformers"),
    ({"model_type": 5}, "model_type 5 in config.json is not known"),
    ({"model_type": "vitt"}, r"model_type 'vitt' .*did you mean vit\?"),
    ({"model_type": "x\n" * 99}, "is not known"),
    ({"architecture": "resnet18"}, "is a model of timm; give timm:resnet18"),
    ({"model_type": "custom", "auto_map": {"AutoConfig": "evil.Config"}}, "model_type 'custom' in config.json is not known"),
    ({"model_type": "encodec"}, "has no classifier of images or text of model_type 'encodec'"),
    (VIT | {"num_hidden_layers": 10**9}, "has num_hidden_layers=1000000000, above 1,000"),
    (VIT | {"num_labels": 10**12}, "has num_labels=1000000000000, above"),
    (VIT | {"hidden_size": 2 * 10**6}, "asks for a model of .* GiB; this machine has"),
    (VIT | {"hidden_size": 10**30}, "transformers could not build it"),
    (VIT | {"hidden_size": -4}, "transformers could not build it"),
    (VIT | {"hidden_size": "x"}, "transformers could not build it"),
    (VIT | {"hidden_act": "no such"}, "transformers could not build it"),
])  # fmt: skip
def test_a_hostile_config_is_one_line(tmp_path: Path, content: Any, said: str) -> None:
    (tmp_path / "config.json").write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=said) as caught:
        build(f"hf:{tmp_path}", input_shape=(3, 16, 16), num_classes=2)
    assert len(str(caught.value).splitlines()) == 1


def test_what_names_code_in_a_config_is_left_out(tmp_path: Path) -> None:
    code = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForImageClassification": "evil.Model"}}
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    (tmp_path / "config.json").write_text(json.dumps(VIT | code | {"attn_implementation": "somebody/kernel"}))
    model = build(f"hf:{tmp_path}", input_shape=(3, 16, 16), num_classes=2)
    assert type(model).__module__.startswith("transformers.")
    assert model.config._attn_implementation != "somebody/kernel"


def test_a_config_that_does_not_fit_its_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["vit"], tmp_path / "vit")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    model = made("vit")
    before = model.classifier.weight.detach().clone()
    with pytest.raises(InputError, match=r"config\.json") as caught:
        load_weights(model, tmp_path / "vit")
    assert len(str(caught.value).splitlines()) == 1
    assert torch.equal(model.classifier.weight, before)


# the cache of the library


def cached(home: Path, source: Path, name: str) -> None:
    """``source`` as huggingface_hub keeps what it fetched: files in blobs, links to them in a snapshot, a ref to that."""
    top = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = top / "snapshots" / COMMIT
    for folder in (top / "blobs", top / "refs", snapshot):
        folder.mkdir(parents=True)
    (top / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(source.iterdir())):
        shutil.copy(file, top / "blobs" / f"blob{number}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob{number}")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> Path:
    """An HF_HOME whose cache holds org/tiny, and no network."""
    from huggingface_hub import constants

    cached(tmp_path / "home", folders["vit"], "org/tiny")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "home" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "home"


@pytest.mark.parametrize("spec", ["hf:org/tiny", f"hf:org/tiny@{COMMIT}", "hf:org/tiny@main"])
def test_a_name_is_found_in_the_cache_without_network(offline: Path, spec: str) -> None:
    model = build(spec, input_shape=(3, 16, 16), num_classes=5)
    assert load_weights(model, spec, min_match=1.0).source == f"{spec}: model.safetensors.index.json"


@pytest.mark.parametrize(("spec", "said"), [
    ("hf:org/other", "is not in the cache, and the hub cannot be reached; load it once online"),
    ("hf:org/tiny@v2", "is not in the cache, and the hub cannot be reached"),
    ("hf:a b", "no such folder, and not a name like ORGANISATION/NAME"),
    ("hf:a/b/c", "not a name like"),
    ("hf:", "no such folder; give hf:FOLDER or hf:ORGANISATION/NAME"),
    ("hf:./nowhere", "no such folder"),
    ("hf:/nowhere/at/all", "no such folder"),
    ("hf:~/nowhere", "no such folder"),
])  # fmt: skip
def test_a_name_that_cannot_be_had_is_one_line(offline: Path, spec: str, said: str) -> None:
    for task in (lambda: load_weights(nn.Linear(2, 2), spec), lambda: build(spec, input_shape=(3, 16, 16), num_classes=2)):
        with pytest.raises(InputError, match=said) as caught:
            task()
        assert spec in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_the_command_line_trains_from_a_name_offline_and_then_from_that_run(
    offline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).normal(size=(40, 3, 16, 16)).astype("float32")
    np.savez("data.npz", x=images, y=np.arange(40) % 4)
    flags = ["--data", "data.npz", "--model", "hf:org/tiny", "--epochs", "1", "--tricks", "none", "--batch-size", "20"]
    said = []
    for out, weights in (("one", "hf:org/tiny"), ("two", "one")):
        assert main(["train", *flags, "--transfer.weights", weights, "--out", out]) == 0
        said.append(Path(out, "result.json").read_text())
    assert "source: hf:org/tiny: model.safetensors.index.json" in said[0]
    assert "left out classifier.weight" in said[0]
    assert "source: one: model.safetensors" in said[1]
    assert "100.0% of the parameters outside the head" in said[1]


def test_the_switches_of_the_library_in_the_environment_are_honoured(offline: Path) -> None:
    code = "from heptane.pretrained.hubs.hf_hub import SAFE, find; print(find('hf:org/tiny', 'it', SAFE))"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = kept | {"HF_HOME": str(offline), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == offline / "hub" / "models--org--tiny" / "snapshots" / COMMIT


def test_libraries_that_are_not_installed_name_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for library in ("transformers", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(InputError, match=r'needs transformers: pip install "heptane\[hf\]"'):
        build("hf:org/tiny", input_shape=(3, 16, 16), num_classes=2)
    with pytest.raises(InputError, match=r'needs huggingface_hub: pip install "heptane\[hf\]"'):
        load_weights(nn.Linear(2, 2), "hf:org/tiny")


def test_a_base_models_weights_go_into_a_classifier_and_the_prefix_is_told(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=11, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    base = transformers.BertModel(config)
    base.save_pretrained(tmp_path)
    model = transformers.BertForSequenceClassification(config)
    report = load_weights(model, tmp_path)
    assert report.prefix == "(none) -> bert."
    assert "names translated: (none) -> bert." in str(report)
    assert torch.equal(model.bert.embeddings.word_embeddings.weight, base.embeddings.word_embeddings.weight)
