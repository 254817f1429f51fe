"""Translation: English to German with a small transformer and label smoothing 0, 0.1 and 0.2.

The data are Debian's package descriptions in English and German from apt's indexes, matched by the checksum of the
English one. Titles form pairs, and so do paragraphs if both descriptions have the same number of them. Pairs of at
most 8 words are used. They are split by source package, because binary packages from one source have similar
descriptions. A pair whose English or German text occurs in one part is left out of the later parts, so no test text
is seen in training. Both languages share subwords, learned from the training part by byte-pair encoding.

Training uses batches of similar lengths, 1cycle and AdamW. Decoding is greedy; BLEU is from sacrebleu. The loss is
per subword and without smoothing in all arms, and perplexity is its exponential. Smoothing should be judged by BLEU,
since it "hurts perplexity" but "improves accuracy and BLEU score" (Vaswani et al. 2017, arXiv:1706.03762, section
5.4).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import heptane as hp
from fetch import descriptions, stanzas
from heptane.base.errors import InputError
from heptane.base.randomness import generator
from record import Record, flags, run

MAX_WORDS, SUBWORDS = 8, 2000
TEST_SHARE = 0.04  # of the source packages, to test and again to validate
PAD, START, END = 0, 1, 2
WIDTH, HEADS, LAYERS = 96, 4, 2
EPOCHS, BATCH_SIZE, LR = 2, 64, 3e-3
SMOOTHING = (0.0, 0.1, 0.2)
Pair = tuple[str, str]


def parts(folder: Path) -> dict[str, list[Pair]]:
    """English and German texts by part (train, valid, test), from the indexes in ``folder``."""
    source_of = {s["Package"]: s.get("Source", s["Package"]).split()[0] for s in stanzas(folder / "Packages")}
    english = {s["Description-md5"]: s["Description-en"] for s in stanzas(folder / "Translation-en")}
    pairs: dict[str, dict[Pair, None]] = {}
    for stanza in stanzas(folder / "Translation-de"):
        both = paragraphs(english.get(stanza["Description-md5"], "")), paragraphs(stanza["Description-de"])
        if len(both[0]) == len(both[1]):
            source = source_of.get(stanza["Package"], stanza["Package"])
            pairs.setdefault(source, {}).update(dict.fromkeys(zip(*both, strict=True)))
    return split({source: [pair for pair in of if fits(pair)] for source, of in pairs.items()})


def paragraphs(description: str) -> list[str]:
    """The title and the paragraphs, which are separated by lines with one dot."""
    title, _, text = description.partition("\n")
    return [title, *(" ".join(part.split()) for part in f"\n{text}\n".split("\n.\n") if part.strip())]


def fits(pair: Pair) -> bool:
    """Whether both texts are short and differ."""
    return pair[0] != pair[1] and all(1 <= len(text.split()) <= MAX_WORDS for text in pair)


def split(pairs: dict[str, list[Pair]]) -> dict[str, list[Pair]]:
    """Split by source package; no text occurs in two parts, ignoring case."""
    sources = sorted(pairs)
    order = [sources[at] for at in generator(0, "split", 0).permutation(len(sources))]
    held = round(TEST_SHARE * len(order))
    found: dict[str, list[Pair]] = {}
    seen: set[str] = set()
    for part, chosen in (("test", order[:held]), ("valid", order[held : 2 * held]), ("train", order[2 * held :])):
        fresh = {pair: None for source in chosen for pair in pairs[source] if seen.isdisjoint(map(str.lower, pair))}
        found[part] = list(fresh) if part == "train" else sorted(fresh, key=lambda pair: len(pair[0]))  # quicker to decode
        seen |= {text.lower() for pair in fresh for text in pair}
    return found


class Subwords:
    """Byte-pair encoding of both languages; 0 is padding, 1 the start and 2 the end."""

    def __init__(self, texts: Sequence[str], size: int = SUBWORDS) -> None:
        try:
            from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
        except ModuleNotFoundError as error:
            raise InputError('subwords need tokenizers, which is missing: pip install "heptane[recipes]"') from error
        self.tokenizer = Tokenizer(models.BPE())
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        self.tokenizer.decoder = decoders.ByteLevel()
        special, bytes_ = ["<pad>", "<start>", "<end>"], pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=bytes_, show_progress=False)
        self.tokenizer.train_from_iterator(texts, trainer)

    def __len__(self) -> int:
        return int(self.tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """The subwords of a text."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, subwords: Sequence[int]) -> str:
        """The text of a list of subwords."""
        return str(self.tokenizer.decode(list(subwords))).strip()


def loader(pairs: Sequence[Pair], subwords: Subwords, seed: int | None = None) -> DataLoader[Any]:
    """Batches of similar lengths, shuffled by ``seed``; in order if it is None."""
    samples = [sample(subwords.encode(english), subwords.encode(german)) for english, german in pairs]
    if seed is None:
        return DataLoader(samples, BATCH_SIZE, collate_fn=hp.pad_batch)  # type: ignore[arg-type]
    lengths = [len(inputs["source"]) + len(targets) for inputs, targets in samples]
    return DataLoader(samples, batch_sampler=hp.LengthBatches(lengths, BATCH_SIZE, seed), collate_fn=hp.pad_batch)  # type: ignore[arg-type]


def sample(english: list[int], german: list[int]) -> tuple[dict[str, list[int]], list[int]]:
    """Inputs, and as targets the next subword at each position."""
    return {"source": [*english, END], "target": [START, *german]}, [*german, END]


class Translator(nn.Module):
    """An encoder and a decoder with one embedding table, also used for the output scores."""

    def __init__(self, num_subwords: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_subwords, WIDTH, PAD)
        nn.init.normal_(self.embedding.weight, std=WIDTH**-0.5)
        kind: dict[str, Any] = {"dropout": 0.1, "batch_first": True, "norm_first": True}
        encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, **kind)
        decoder = nn.TransformerDecoderLayer(WIDTH, HEADS, 4 * WIDTH, **kind)
        self.encoder = nn.TransformerEncoder(encoder, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.decoder = nn.TransformerDecoder(decoder, LAYERS, nn.LayerNorm(WIDTH))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores (N, T, subwords) of the next subword after each of ``target`` (N, T), given ``source`` (N, S)."""
        return self.score(self.decode(target, self.encode(source), source))

    def encode(self, source: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(self.embed(source), src_key_padding_mask=source == PAD)
        return encoded

    def decode(self, target: Tensor, encoded: Tensor, source: Tensor) -> Tensor:
        length = target.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
        decoded: Tensor = self.decoder(
            self.embed(target), encoded, tgt_mask=later, tgt_is_causal=True, memory_key_padding_mask=source == PAD
        )
        return decoded

    def score(self, decoded: Tensor) -> Tensor:
        return nn.functional.linear(decoded, self.embedding.weight)

    def embed(self, subwords: Tensor) -> Tensor:
        """Embeddings plus sines and cosines of the position (Vaswani et al. 2017, section 3.5)."""
        places = torch.arange(subwords.shape[1], device=subwords.device)[:, None]
        angles = places * torch.exp(torch.arange(0, WIDTH, 2, device=subwords.device) * (-math.log(10_000) / WIDTH))
        return self.embedding(subwords) * WIDTH**0.5 + torch.cat([angles.sin(), angles.cos()], 1)

    @torch.no_grad()
    def greedy(self, source: Tensor) -> list[list[int]]:
        """Append the most likely next subword until the end."""
        encoded, said = self.encode(source), torch.full((len(source), 1), START, device=source.device)
        for _ in range(source.shape[1] + 10):
            best = self.score(self.decode(said, encoded, source)[:, -1]).argmax(-1)
            said = torch.cat([said, best[:, None]], 1)
            if bool((said == END).any(1).all()):
                break
        return [row[1 : row.index(END)] if END in row else row[1:] for row in said.tolist()]


def translations(model: nn.Module, data: DataLoader[Any], subwords: Subwords) -> list[str]:
    """German translations, in the order of ``data``, on the model's device."""
    device = next(model.parameters()).device
    return [subwords.decode(said) for inputs, _ in data for said in model.greedy(inputs["source"].to(device))]


def bleu(model: nn.Module, data: DataLoader[Any], *, subwords: Subwords, references: Sequence[str]) -> float:
    """BLEU of the translations, 0 to 100."""
    try:
        import sacrebleu
    except ModuleNotFoundError as error:
        raise InputError('BLEU needs sacrebleu, which is missing: pip install "heptane[recipes]"') from error
    return sacrebleu.corpus_bleu(translations(model, data, subwords), [list(references)]).score


def train_arm(
    eps: float, found: dict[str, list[Pair]], subwords: Subwords, *, seed: int, epochs: float = EPOCHS
) -> tuple[nn.Module, dict[str, float]]:
    """Train a translator; returns it and its results on the test part."""
    torch.manual_seed(seed)
    references = [german for _, german in found["test"]]
    result = hp.fit(
        Translator(len(subwords)),
        loader(found["train"], subwords, seed),
        optimizer=functools.partial(torch.optim.AdamW, lr=LR, betas=(0.9, 0.98), weight_decay=0.01),
        loss=hp.CrossEntropy(class_dim=-1),
        epochs=epochs,
        tricks=hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=hp.LabelSmoothing(eps=eps) if eps else None),
        clip_norm=1.0,
        seed=seed,
        test=loader(found["test"], subwords),
        metrics={"bleu": functools.partial(bleu, subwords=subwords, references=references)},
    )
    loss = result.metrics["test_loss"]
    return result.model, {"BLEU": result.metrics["test_bleu"], "test loss": loss, "perplexity": math.exp(loss)}


def main(argv: Sequence[str] | None = None) -> None:
    chosen = flags(__doc__, 3, argv)
    question = "what does label smoothing do to BLEU and to the unsmoothed loss of a translator?"
    record = Record("translation", question, {"BLEU": True, "test loss": False, "perplexity": False})
    found, epochs = parts(descriptions()), EPOCHS
    if chosen.quick:
        found, epochs = {part: pairs[:1000] for part, pairs in found.items()}, 1
    subwords = Subwords([text for pair in found["train"] for text in pair])
    for seed in range(chosen.seeds):
        for eps in SMOOTHING:
            model, measured = train_arm(eps, found, subwords, seed=seed, epochs=epochs)
            record.add(f"smoothing {eps:g}", measured)
    for eps in SMOOTHING[1:]:
        record.compare(f"smoothing {eps:g}", "smoothing 0")
    record.finish(
        chosen.out,
        data={part: len(pairs) for part, pairs in found.items()},
        subwords=len(subwords),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        rate=LR,
    )
    shown = found["test"][:: -(-len(found["test"]) // 10)]
    for (english, german), mine in zip(shown, translations(model.eval(), loader(shown, subwords), subwords), strict=True):
        print(f"\n{english}\n  {german}\n  {mine}")


if __name__ == "__main__":
    run(main)
