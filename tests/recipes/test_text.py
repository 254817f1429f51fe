"""The text recipe, on an index in apt's form with made-up packages, and an encoder of two small layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import heptane as hp
import text

transformers = pytest.importorskip("transformers")
pytest.importorskip("sklearn")

TOPICS = {
    "games": ["dragon", "puzzle", "arcade", "castle"],
    "mail": ["inbox", "letter", "postman", "stamp"],
    "sound": ["melody", "guitar", "drum", "chorus"],
}
FILLERS = ["small", "fast", "simple", "modern", "great", "old"]


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four binary packages of each source, the last two with one description; ``contrib/`` before some sections."""
    folder, stanzas = tmp_path_factory.mktemp("indexes"), []
    for section, words in TOPICS.items():
        for at, (word, filler) in enumerate((word, filler) for word in words for filler in FILLERS):
            for suffix in ("", "-doc", "-data", "-data2"):
                area = "contrib/" if at % 5 == 0 else ""
                description = f"{filler} {word} {suffix[1:5]}".strip()
                lines = f"Package: {section}{at}{suffix}\nSource: {section}{at} (1.0)\nSection: {area}{section}\n"
                stanzas.append(f"{lines}Description: {description}\n")
    stanzas.append("Package: odd\nSection: rare\nDescription: the only one of its section\n")
    (folder / "Packages").write_text("\n".join(stanzas))
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like MiniLM's: weights, their configuration, and a tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp("encoder")
    words = [*FILLERS, *(word for topic in TOPICS.values() for word in topic), "doc", "data"]
    vocabulary = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=64)  # as MiniLM's own file asks for
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(1234)  # not a seed that an arm is built with
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_neither_a_source_nor_a_description_is_in_two_parts(indexes):
    train, test, names = text.load(indexes, (1000, 1000), seed=0)
    assert names == sorted(TOPICS)  # the area before the slash left out, and the section of one package too
    assert len(train.texts) + len(test.texts) == 3 * 24 * 3  # "-data" and "-data2" say the same
    for part in (train, test):
        assert len(set(part.texts)) == len(part.texts)
        assert all(told.split()[1] in TOPICS[names[label]] for told, label in zip(part.texts, part.labels, strict=True))
    sources = [{" ".join(told.split()[:2]) for told in part.texts} for part in (train, test)]
    assert sources[0].isdisjoint(sources[1])
    assert text.load(indexes, (1000, 1000), seed=1)[1].texts != test.texts
    assert len(text.load(indexes, (20, 10), seed=0)[0].texts) == 20


def test_samples_are_as_long_as_their_tokens(encoder):
    found = text.samples(encoder, text.Part(["small dragon", "old inbox data"], [0, 1]))
    assert [len(sample["input_ids"]) for sample in found] == [4, 5]
    assert [sample["attention_mask"] for sample in found] == [[1] * 4, [1] * 5]
    assert [sample["labels"] for sample in found] == [0, 1]


def test_padding_does_not_matter(encoder):
    model = text.Classifier(encoder, 3).eval()
    short = text.samples(encoder, text.Part(["small dragon"], [0]))
    both = hp.pad_batch([*short, *text.samples(encoder, text.Part(["old inbox data guitar drum"], [0]))])
    alone = hp.pad_batch(short)
    first = model(both["input_ids"], both["attention_mask"])[:1]
    torch.testing.assert_close(first, model(alone["input_ids"], alone["attention_mask"]), atol=1e-5, rtol=1e-5)


def test_the_arms_with_weights_begin_with_them_and_only_the_head_learns_where_the_rest_is_frozen(encoder, indexes):
    train, test, names = text.load(indexes, (64, 32), seed=0)
    parts = text.samples(encoder, train), text.samples(encoder, test)
    held = transformers.AutoModel.from_pretrained(encoder, add_pooling_layer=False).state_dict()
    same = {}
    for arm in (text.SCRATCH, text.HEAD, text.ALL):
        model = text.train_arm(arm, encoder, *parts, len(names), 1, seed=0).model
        drift = [(tensor - held[name]).abs().max() for name, tensor in model.encoder.state_dict().items()]
        same[arm] = float(max(drift))
    assert same[text.HEAD] == 0
    assert 0 < same[text.ALL] < 0.05 < same[text.SCRATCH]


def test_a_bag_of_words_learns_the_words():
    told = [f"{filler} {word}" for words in TOPICS.values() for word in words for filler in FILLERS]
    labels = [at // 24 for at in range(len(told))]
    assert text.bag_of_words(text.Part(told, labels), text.Part(["great puzzle", "old chorus"], [0, 2])) == 1


def test_every_arm_is_measured(encoder, indexes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(text, "LR", 1e-2)
    text.measure(encoder, indexes, 1, tmp_path, (128, 48), 8)
    found = json.loads((tmp_path / "recipe-text.json").read_text())
    assert list(found["arms"]) == [text.WORDS, text.SCRATCH, text.HEAD, text.ALL, text.MIXED]
    accuracies = {arm: values["test accuracy"]["mean"] for arm, values in found["arms"].items()}
    assert accuracies[text.WORDS] > 0.9
    assert min(accuracies[arm] for arm in (text.SCRATCH, text.ALL, text.MIXED)) > 0.5
    assert "training seconds" not in found["arms"][text.WORDS]
    assert found["sections"] == 3
    assert text.MIXED in capsys.readouterr().out
