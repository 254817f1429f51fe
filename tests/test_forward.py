"""How a model is called: dicts by keyword, transformers' outputs, the model's own loss, metrics."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict

import pytest
import torch
from tests.helpers import by_hand, sgd, shuffled, weights

import heptane as hp
from heptane.core.fit_options import Plan
from heptane.fit import train
from heptane.model.forward import call, compiled

TOKENS, CLASSES = 11, 3


class Answer(OrderedDict):
    """As transformers' ``ModelOutput`` is: a dict with attributes, that refuses ``update``."""

    def to_tuple(self):
        return tuple(self.values())

    def update(self, *_, **__):
        raise Exception("You cannot use update on a ModelOutput instance.")


class Encoder(torch.nn.Module):
    """A mean of embeddings under a mask, and a head; computes its loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(TOKENS, 6)
        self.head = torch.nn.Linear(6, CLASSES)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.embedding(input_ids)
        mask = torch.ones(hidden.shape[:2]) if attention_mask is None else attention_mask
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        logits = self.head(mean)
        if labels is None:
            return Answer(logits=logits)
        return Answer(loss=torch.nn.functional.cross_entropy(logits, labels), logits=logits)


class TakesADict(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(4, CLASSES)

    def forward(self, batch):
        return self.head(batch["a"] + batch["b"])


class Rows(torch.utils.data.Dataset):
    """A dict of tensors, sample by sample."""

    def __init__(self, data) -> None:
        self.data = data

    def __len__(self):
        return len(self.data["labels"])

    def __getitem__(self, index):
        return {key: value[index] for key, value in self.data.items()}


def text(count: int = 40, length: int = 7):
    draw = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, length + 1, (count,), generator=draw)
    mask = (torch.arange(length) < lengths[:, None]).long()
    ids = torch.randint(1, TOKENS, (count, length), generator=draw) * mask
    return {"input_ids": ids, "attention_mask": mask}, ids.sum(1) % CLASSES


def trained(model, data, **settings):
    hp.fit(model, data, optimizer=sgd, epochs=2, batch_size=8, **settings)
    return weights(model)


def plain_loop(loss_of, model=Encoder, data=None):
    return weights(by_hand(model(), shuffled(data or text(), 8, epochs=2), loss_of=loss_of))


def mixed_loop(model, trick, logits_of):
    """As :func:`plain_loop`; ``logits_of`` blends with the pairs that ``trick`` draws."""
    step = itertools.count()

    def loss_of(model, inputs, targets):
        draw = trick.draw(0, next(step), 8)
        logits = logits_of(model, inputs["input_ids"], inputs["attention_mask"], draw)
        own, other = (torch.nn.functional.cross_entropy(logits, t) for t in (targets, targets[draw.partner]))
        return draw.lam[0] * own + (1 - draw.lam[0]) * other

    return plain_loop(loss_of, model)


def test_a_dict_goes_in_by_keyword_and_the_logits_come_out():
    inputs, _ = text(5)
    model = Encoder()
    assert torch.equal(call(model, inputs), model(**inputs)["logits"])
    assert set(call(model, inputs, torch.zeros(5, dtype=torch.long))) == {"loss", "logits"}


def test_a_dict_that_is_the_models_one_argument_stays_one():
    assert call(TakesADict(), {"a": torch.ones(2, 4), "b": torch.ones(2, 4)}).shape == (2, CLASSES)


def test_names_that_the_model_does_not_know_are_no_keywords():
    with pytest.raises(TypeError):
        call(Encoder(), {"pixels": torch.zeros(2, 3)})


def test_what_a_graph_gives_is_copied_before_the_next_replay_writes_over_it(monkeypatch):
    kept = torch.zeros(2, 3, requires_grad=True)
    graph = torch.nn.Module()
    graph.forward = lambda x: {"logits": kept}
    monkeypatch.setattr(torch, "compile", lambda model, mode: graph)
    output = compiled(torch.nn.Linear(2, 3), "reduce-overhead")(torch.zeros(2, 2))["logits"]
    assert torch.equal(output, kept)
    assert output.data_ptr() != kept.data_ptr()
    output.sum().backward()
    assert torch.equal(kept.grad, torch.ones(2, 3))
    assert compiled(graph, False) is graph


def test_a_mode_that_torch_compile_does_not_have_is_refused_and_graphs_with_micro_batches():
    def plan(**settings):
        return Plan.of(optimizer=sgd, epochs=1, **settings)

    with pytest.raises(hp.InputError, match=r"compile='reduce-overheads'.*reduce-overhead"):
        plan(compile="reduce-overheads")
    with pytest.raises(hp.InputError, match=r"compile='reduce-overhead' with accumulate=2: .*accumulate=1"):
        plan(compile="reduce-overhead", accumulate=2)
    assert plan(compile=True, accumulate=2).extras.compile is True


def test_keywords_pass_through_a_compiled_model():
    inputs, _ = text(5)
    model = Encoder()
    compiled = torch.compile(model, backend="eager")
    assert torch.equal(call(compiled, inputs), call(model, inputs))


@pytest.mark.parametrize("kind", ["pair", "one dict", "data set of dicts"])
def test_training_on_dicts_is_a_loop_by_hand(kind):
    inputs, targets = text()
    data = (inputs, targets) if kind == "pair" else {**inputs, "labels": targets}
    if kind == "data set of dicts":
        data = Rows(data)
    expected = plain_loop(lambda m, x, y: torch.nn.functional.cross_entropy(m(**x)["logits"], y))
    assert torch.equal(trained(Encoder(), data), expected)


def test_the_models_own_loss_is_a_loop_by_hand():
    expected = plain_loop(lambda m, x, y: m(**x, labels=y)["loss"])
    assert torch.equal(trained(Encoder(), text(), loss="model"), expected)


def test_the_models_own_loss_has_accuracy_and_validation():
    result = hp.fit(Encoder(), text(), text(), optimizer=sgd, epochs=1, batch_size=8, loss="model")
    plain = hp.fit(Encoder(), text(), text(), optimizer=sgd, epochs=1, batch_size=8)
    assert result.metrics == pytest.approx(plain.metrics)
    assert {"valid_accuracy", "valid_loss"} <= set(result.metrics)
    assert "train_accuracy" in result.history[-1]


def test_the_models_own_loss_in_micro_batches_is_that_of_the_batch():
    torch.testing.assert_close(
        trained(Encoder(), text(), loss="model", accumulate=4), trained(Encoder(), text(), loss="model")
    )


def test_a_model_that_gives_nothing_but_a_loss_trains():
    class OnlyLoss(Encoder):
        def forward(self, input_ids, attention_mask, labels):
            return super().forward(input_ids, attention_mask, labels)["loss"]

    expected = plain_loop(lambda m, x, y: m(**x, labels=y)["loss"])
    assert torch.equal(trained(OnlyLoss(), text(), loss="model"), expected)


@pytest.mark.parametrize("trick", [{"label_smoothing": hp.LabelSmoothing()}, {"mixup": hp.Mixup(layer="embedding")}])
def test_what_cannot_reach_into_the_models_loss_is_refused(trick):
    with pytest.raises(hp.InputError, match=r"loss='model'.*leave loss out"):
        trained(Encoder(), text(), loss="model", tricks=hp.Tricks(**trick))


def test_a_model_without_a_loss_is_refused():
    class NoLoss(Encoder):
        def forward(self, input_ids, attention_mask, labels=None):
            return super().forward(input_ids, attention_mask)

    with pytest.raises(hp.InputError, match="without a loss"):
        trained(NoLoss(), text(), loss="model")


def test_labels_out_of_range_in_a_dict_are_named():
    inputs, targets = text()
    targets[7] = 9
    with pytest.raises(hp.InputError, match="label 9 of sample 7"):
        trained(Encoder(), {**inputs, "labels": targets})


def test_all_of_the_loss_tricks_apply_to_dicts():
    tricks = hp.Tricks(
        mixup=hp.Mixup(layer="embedding", alpha=0.4),
        label_smoothing=hp.LabelSmoothing(),
        cyclical=hp.Cyclical(cycle_momentum=False),
        mixed_precision=hp.MixedPrecision(dtype="bf16", channels_last="off"),
    )
    result = hp.fit(Encoder(), text(), text(), optimizer=sgd, epochs=2, batch_size=8, tricks=tricks)
    assert 0 <= result.metrics["valid_accuracy"] <= 1


def test_mixup_of_embeddings_keeps_the_longer_mask_and_does_not_change_with_micro_batches():
    tricks = hp.Tricks(mixup=hp.Mixup(layer="embedding", alpha=0.4))
    whole, parts = (trained(Encoder(), text(), tricks=tricks, accumulate=count) for count in (1, 4))
    torch.testing.assert_close(parts, whole)

    def logits_of(model, ids, mask, draw):
        hidden, lam = model.embedding(ids), draw.lam[0]
        hidden = lam * hidden + (1 - lam) * hidden[draw.partner]
        mask = mask | mask[draw.partner]
        return model.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))

    torch.testing.assert_close(whole, mixed_loop(Encoder, tricks.mixup, logits_of))


class Attending(torch.nn.Module):
    """Its encoder looks at the mask, and so may what follows it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.mean = torch.nn.Embedding(TOKENS, 6), torch.nn.Identity()
        self.head = torch.nn.Linear(6, CLASSES)

    def forward(self, input_ids, attention_mask):
        hidden = self.embedding(input_ids) * attention_mask[..., None]
        return self.head(self.mean(hidden.sum(1) / attention_mask.sum(1, keepdim=True)))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_mixup_after_the_mask_was_used_leaves_each_sample_its_own(accumulate):
    tricks = hp.Tricks(mixup=hp.Mixup(layer="mean", alpha=0.4))
    found = trained(Attending(), text(), tricks=tricks, accumulate=accumulate)

    def logits_of(model, ids, mask, draw):
        means = (model.embedding(ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return model.head(draw.lam[0] * means + (1 - draw.lam[0]) * means[draw.partner])

    torch.testing.assert_close(found, mixed_loop(Attending, tricks.mixup, logits_of))


def test_mixup_of_a_dict_without_a_layer_names_it():
    with pytest.raises(hp.InputError, match=r"Mixup\.layer"):
        trained(Encoder(), text(), tricks=hp.Tricks(mixup=hp.Mixup()))


def test_a_function_is_a_metric_and_sees_the_model_in_eval_mode():
    seen = []

    def longest(model, data):
        seen.append((model.training, torch.is_grad_enabled()))
        with pytest.raises(AttributeError):
            data.nothing  # noqa: B018
        return float(data[0]["attention_mask"].sum(1).max())

    result = hp.fit(
        Encoder(),
        text(),
        text(),
        optimizer=sgd,
        epochs=2,
        batch_size=8,
        metrics={"longest": longest},
        target=("valid_longest", 99, "max"),
    )
    assert result.metrics["valid_longest"] == 7
    assert seen == [(False, False)] * 3  # once before training, on a few samples


def test_a_metric_of_ones_own_needs_no_torchmetrics():
    class Count:
        def reset(self):
            self.count = 0

        def update(self, output, targets):
            self.count += len(targets)

        def compute(self):
            return self.count

    assert hp.evaluate(Encoder(), text(), metrics={"count": Count()})["count"] == 40


def test_a_loss_per_token_is_the_mean_over_all_tokens_that_count():
    class Tagger(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embedding, self.head = torch.nn.Embedding(TOKENS, 6), torch.nn.Linear(6, CLASSES)

        def forward(self, input_ids, attention_mask):
            return self.head(self.embedding(input_ids) * attention_mask[..., None])

    inputs, _ = text()
    targets = (inputs["input_ids"] % CLASSES).where(inputs["attention_mask"] == 1, -100)
    loss = hp.CrossEntropy(class_dim=-1)
    found = [trained(Tagger(), (inputs, targets), loss=loss, accumulate=count) for count in (1, 3)]
    torch.testing.assert_close(*found)

    def loss_of(model, inputs, targets):
        return torch.nn.functional.cross_entropy(model(**inputs).transpose(1, 2), targets)

    torch.testing.assert_close(found[0], plain_loop(loss_of, Tagger, (inputs, targets)))


def test_a_batch_as_long_as_there_are_classes_is_read_like_the_others():
    tagger = torch.nn.Sequential(torch.nn.Embedding(TOKENS, 6), torch.nn.Linear(6, CLASSES))
    lengths = [CLASSES + 2, CLASSES, CLASSES + 1]
    batches = [(torch.randint(0, CLASSES, (4, n)),) * 2 for n in lengths]
    loader = torch.utils.data.DataLoader(batches, batch_size=None, sampler=range(3))
    for _ in hp.train(tagger, loader, optimizer=sgd, epochs=1):
        pass


@pytest.mark.parametrize("num_labels", [CLASSES, CLASSES + 5])
def test_a_transformers_model_trains_on_its_own_loss_and_on_ours(num_labels):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=TOKENS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        num_labels=num_labels, max_position_embeddings=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    found = []
    for loss in ("model", None):
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(copy.deepcopy(config))
        tricks = hp.Tricks(transfer=hp.Transfer(rate_factor=1.0))  # gives it a head of CLASSES outputs
        settings = {"optimizer": sgd, "epochs": 1, "batch_size": 8, "tricks": tricks}
        found.append(hp.fit(model, text(), text(), loss=loss, **settings).metrics)
        assert model.config.num_labels == model.num_labels == CLASSES
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_train_as_a_generator_takes_dicts():
    assert len(list(train(Encoder(), text(), optimizer=sgd, epochs=1, batch_size=8))) == 5


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("kind", ["tensors", "loader"])
def test_two_workers_on_dicts_are_one(kind):
    inputs, targets = text()
    data = {**inputs, "labels": targets}
    settings = {"batch_size": 8}
    if kind == "loader":
        data, settings = torch.utils.data.DataLoader(Rows(data), 8, num_workers=1), {}
    alone, both = Encoder(), Encoder()
    hp.fit(alone, data, optimizer=sgd, epochs=2, **settings)
    tricks = hp.Tricks(data_parallel=hp.DataParallel(workers=2))
    hp.fit(both, data, optimizer=sgd, epochs=2, tricks=tricks, **settings)
    torch.testing.assert_close(weights(both), weights(alone))


def test_a_bad_sample_of_a_dict_is_left_out_and_named():
    inputs, targets = text()
    targets[11] = 7

    class Torn(Rows):
        def __getitem__(self, index):
            if index == 5:
                raise OSError("torn")
            return super().__getitem__(index)

    result = hp.fit(Encoder(), Torn({**inputs, "labels": targets}), optimizer=sgd, epochs=1, batch_size=8, skip_bad=2)
    assert any("sample 5 was skipped" in note and "torn" in note for note in result.notes)
    assert any("sample 11 was skipped" in note and "label 7" in note for note in result.notes)
