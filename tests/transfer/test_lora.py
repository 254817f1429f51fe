"""LoRA adapters: what trains, the equation, and an ordinary model at the end."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tests.helpers import by_hand, sgd, shuffled, weights

import heptane as hp
from heptane.pretrained import lora

pytest.importorskip("peft")


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        torch.nn.LayerNorm(8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 8),
        torch.nn.ReLU(),
        torch.nn.Linear(8, 3),
    )


def data():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(48, 6, generator=draw)
    return x, x[:, :3].argmax(1)


def fitted(model=None, *, rank=2, epochs=3, optimizer=sgd, tricks=None, **settings):
    model = network() if model is None else model
    chosen = hp.Tricks(transfer=hp.Transfer(lora_rank=rank, rate_factor=1.0), **(tricks or {}))
    given = {"optimizer": optimizer, "epochs": epochs, "batch_size": 8, "tricks": chosen, "weights": "last", **settings}
    return model, hp.fit(model, data(), data(), **given)


def test_at_first_the_model_computes_what_it_did_and_only_adapters_and_head_train():
    model = network()
    x, before = data()[0], network()(data()[0])
    said = lora.adapt(model, 2, None, model[5], 0)
    assert torch.equal(model(x), before)
    assert "2 linear layers" in said
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        *(f"{i}.lora_{ab}.heptane.weight" for i in (0, 3) for ab in "AB"),
        "5.weight",
        "5.bias",
    }


def test_the_adapted_layer_is_the_equation():
    model = network()
    lora.adapt(model, 2, 6.0, model[5], 0)
    layer = model[0]
    torch.nn.init.normal_(layer.lora_B["heptane"].weight)
    x, (a, b) = data()[0], (layer.lora_A["heptane"].weight, layer.lora_B["heptane"].weight)
    torch.testing.assert_close(layer(x), network()[0](x) + 6.0 / 2 * x @ a.T @ b.T)
    after = model(x)
    lora.merge(model)
    assert type(model[0]) is torch.nn.Linear
    torch.testing.assert_close(model(x), after)


def test_a_run_is_a_loop_by_hand():
    model, _ = fitted()
    other = network()
    lora.adapt(other, 2, None, other[5], 0)
    by_hand(other, shuffled(data(), 8, epochs=3))
    lora.merge(other)
    torch.testing.assert_close(weights(model), weights(other))
    assert not torch.equal(model[0].weight, network()[0].weight)
    assert torch.equal(model[1].weight, network()[1].weight)


def test_an_ordinary_model_and_file_are_left(tmp_path):
    model, result = fitted(run_dir=tmp_path / "run")
    assert result.model is model
    assert all(p.requires_grad for p in model.parameters())
    assert list(model.state_dict()) == list(network().state_dict())
    fresh = network()
    hp.load_weights(fresh, tmp_path / "run" / "model.safetensors")
    assert torch.equal(weights(fresh), weights(model))
    assert hp.evaluate(fresh, data())["loss"] == pytest.approx(result.metrics["valid_loss"], rel=1e-5)
    assert any("adapters of rank 2 in 2 linear layers" in note for note in result.notes)


def test_a_resumed_run_is_bitwise_the_same_with_the_same_model_or_a_new_one(tmp_path):
    adamw = partial(torch.optim.AdamW, lr=0.01)
    whole, _ = fitted(optimizer=adamw)
    settings = {"optimizer": adamw, "evaluate_every_epochs": 0.5}
    cut, _ = fitted(run_dir=tmp_path / "a", max_seconds=1e-9, **settings)
    assert list(cut.state_dict()) == list(network().state_dict())
    for model in (cut, network()):
        again, result = fitted(model, run_dir=tmp_path / "a", resume=True, **settings)
        assert result.steps["applied"] == 18
    again, _ = fitted(network(), run_dir=tmp_path / "a", resume=True, **settings)
    assert torch.equal(weights(again), weights(whole))


def test_a_run_that_raises_leaves_an_ordinary_model():
    def fails(model, data):
        raise ValueError("stop")

    model = network()
    with pytest.raises(ValueError, match="stop"):
        fitted(model, metrics={"m": fails})
    assert list(model.state_dict()) == list(network().state_dict())
    assert all(p.requires_grad for p in model.parameters())


def unready(parameters):
    raise ValueError("stop")


def train_through(model, *, optimizer=sgd):
    tricks = hp.Tricks(transfer=hp.Transfer(lora_rank=2))
    for _ in hp.train(model, data(), optimizer=optimizer, epochs=1, batch_size=8, tricks=tricks):
        pass


@pytest.mark.parametrize("run", [fitted, train_through])
def test_so_does_one_that_raises_before_its_first_step(run):
    model = network()
    with pytest.raises(ValueError, match="stop"):
        run(model, optimizer=unready)
    assert list(model.state_dict()) == list(network().state_dict())
    assert all(p.requires_grad for p in model.parameters())


class Encoder(torch.nn.Module):
    """PyTorch's own encoder, which in eval mode reads its layers' weights instead of calling them."""

    def __init__(self, nested: bool) -> None:
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.words = torch.nn.Embedding(11, 8)
        self.encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, words):
        return self.head(self.encoder(self.words(words), src_key_padding_mask=words == 0).sum(1))


def sentences():
    draw = torch.Generator().manual_seed(0)
    words = torch.randint(1, 11, (48, 5), generator=draw)
    labels = words[:, 0] % 3
    words[::2, 4:] = 0
    return words, labels


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("nested", [True, False])
def test_what_is_evaluated_is_the_model_with_its_adapters(nested):
    model, words = Encoder(nested), sentences()[0]
    lora.adapt(model, 2, None, model.head, 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    with torch.no_grad():
        model.eval()
        found = model(words)
        lora.merge(model)
        torch.testing.assert_close(found, model(words))


@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize("nested", [True, False])
def test_so_it_is_in_a_run(nested):
    model = Encoder(nested)
    tricks = hp.Tricks(transfer=hp.Transfer(lora_rank=2))
    result = hp.fit(model, sentences(), sentences(), optimizer=sgd, epochs=3, batch_size=8, tricks=tricks)
    assert hp.evaluate(model, sentences())["loss"] == pytest.approx(result.metrics["valid_loss"], rel=1e-5)


class Alike(torch.nn.Module):
    """The first linear layer is "0", and in that end the other names too, that of the head as well."""

    def __init__(self, other: torch.nn.Module) -> None:
        super().__init__()
        self.add_module("0", torch.nn.Linear(6, 8))
        self.other = torch.nn.Sequential(other)
        self.head = torch.nn.Sequential(torch.nn.Linear(8, 3))

    def forward(self, x):
        return self.head(self.other(self.get_submodule("0")(x).unsqueeze(-1)).flatten(1))


@pytest.mark.parametrize("other", [torch.nn.Conv1d(8, 8, 1), torch.nn.GroupNorm(2, 8)])
def test_only_the_linear_layers_are_adapted_whatever_other_names_end_in(other):
    model = Alike(other)
    lora.adapt(model, 2, None, model.head[0], 0)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.lora_A.heptane.weight", "0.lora_B.heptane.weight", "head.0.weight", "head.0.bias"]
    lora.merge(model)
    assert list(model.state_dict()) == list(Alike(other).state_dict())


def test_what_peft_refuses_half_way_leaves_an_ordinary_model(monkeypatch):
    from peft.tuners.lora import LoraModel

    replace, done = LoraModel._create_and_replace, []

    def refuses(*args, **settings):
        if done:
            raise ValueError("stop")
        done.append(replace(*args, **settings))

    monkeypatch.setattr(LoraModel, "_create_and_replace", refuses)
    model = network()
    with pytest.raises(ValueError, match="stop"):
        fitted(model)
    assert done
    assert list(model.state_dict()) == list(network().state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_a_layer_with_two_names_is_adapted_under_both():
    model = network()
    model[3] = torch.nn.Linear(6, 6)
    model = torch.nn.Sequential(model[3], torch.nn.ReLU(), model[3], torch.nn.ReLU(), torch.nn.Linear(6, 3))
    _, result = fitted(model)
    assert model[0] is model[2]
    assert hp.evaluate(model, data())["loss"] == pytest.approx(result.metrics["valid_loss"], rel=1e-5)


@pytest.mark.usefixtures("forked")
def test_over_two_workers_it_is_the_same():
    alone, _ = fitted()
    both, _ = fitted(tricks={"data_parallel": hp.DataParallel(workers=2)})
    torch.testing.assert_close(weights(both), weights(alone), rtol=1e-5, atol=1e-6)


def test_the_generator_leaves_an_ordinary_model():
    model = network()
    train_through(model)
    assert list(model.state_dict()) == list(network().state_dict())


def test_averaged_weights_are_merged():
    model, result = fitted(average_decay=0.9)
    assert hp.evaluate(model, data())["loss"] == pytest.approx(result.metrics["valid_loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_rank": -1}, r"Transfer\.lora_rank"),
        ({"lora_rank": 2, "freeze": 1}, "set freeze=0"),
        ({"lora_rank": 2, "lora_alpha": 0.0}, r"Transfer\.lora_alpha"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(hp.InputError, match=message):
        hp.Transfer(**settings)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(hp.InputError, match="no linear layer besides its head"):
        fitted(torch.nn.Sequential(torch.nn.Linear(6, 3)))


def test_without_peft_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(hp.InputError, match=r"heptane\[lora\]"):
        fitted()
