"""Speech: spoken syllables to letters with CTC, with label smoothing and masking, tested on unseen speakers.

The data are syllables from Debian's klettres-data, with which children learn to read: one folder per language.
Speakers are not named, so each folder counts as one speaker. Only syllables in Latin letters are used, without
accents. The split is by folder, so no test speaker is in the training part; American and British English, possibly
one speaker, stay together. Each of six seeds tests another sixth of the recordings, so every speaker is tested once.

Recordings are resampled to 16 kHz and trimmed to the loud part. The inputs are log energies of 40 mel bands every 10
ms, normalized per speaker. A convolutional network outputs a letter or blank every 20 ms. The arms differ in label
smoothing (towards the uniform distribution in each frame, Kim et al. 2018, arXiv:1711.02212) and in masking of bands
and time spans (SpecAugment, Park et al. 2019, arXiv:1904.08779). The letter error rate is the edit distance between
the best path and the true letters, divided by the number of true letters; an empty output has an error rate of 1.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from torch import Tensor, nn

import heptane as hp
from fetch import klettres
from heptane.base.errors import InputError
from record import Record, flags, run

RATE, WINDOW, HOP, MELS = 16_000, 400, 160, 40
LOUD, MARGIN = 22, 6  # decibels under the loudest frame, and frames around: what lies before and after is cut off
MAX_FRAMES = 120
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"  # 1 to 26; 0 is the blank
FOLDS = 6
TOGETHER = {"en_GB": "en"}
EPOCHS, BATCH_SIZE, LR = 32, 16, 3e-3
CHANNELS, DEPTH, DROPOUT = 96, 3, 0.2
Part = tuple[Tensor, tuple[Tensor, Tensor, Tensor]]
"""features (N, bands, frames), and (letters (N, longest), output frames (N,), letters in each (N,))"""


@dataclass(frozen=True)
class Spoken:
    """A recording: features (bands, frames), its text and its folder."""

    features: Tensor
    letters: str
    speaker: str


def spelt(name: str) -> str:
    """The letters of a syllable in upper case without accents; "" if it is not in Latin letters."""
    plain = "".join(c for c in unicodedata.normalize("NFD", name.upper()) if not unicodedata.combining(c))
    plain = plain.replace("Ø", "O").replace("Æ", "AE")
    return plain if set(plain) <= set(LETTERS) else ""


def load(folder: Path) -> list[Spoken]:
    """The syllables in ``folder/LANGUAGE/sounds.xml`` whose files exist."""
    found = []
    for index in sorted(folder.glob("*/sounds.xml")):
        sounds = [sound.attrib for part in ElementTree.parse(index).iter("syllables") for sound in part.iter("sound")]
        known = [(folder / sound["file"], letters) for sound in sounds if (letters := spelt(sound["name"]))]
        speech = [(log_mel(*read(file)), letters) for file, letters in known if file.exists()]
        if speech:
            frames = torch.cat([features for features, _ in speech], 1)
            mean, std = frames.mean(1, keepdim=True), frames.std(1, keepdim=True)
            found += [Spoken((features - mean) / std, letters, index.parent.name) for features, letters in speech]
    if not found:
        raise InputError(f"{str(folder)!r} holds no LANGUAGE/sounds.xml with syllables: expected that of klettres-data")
    return found


def read(file: Path) -> tuple[Tensor, int]:
    """A recording's samples as one channel, and its sampling rate."""
    try:
        import soundfile
    except ModuleNotFoundError as error:
        raise InputError('reading .ogg files needs soundfile, which is missing: pip install "heptane[recipes]"') from error
    samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
    return torch.from_numpy(samples).mean(1), rate


def log_mel(samples: Tensor, rate: int) -> Tensor:
    """Features (bands, frames) of the loud part of a recording."""
    size = round(len(samples) * RATE / rate)
    spectrum = torch.fft.rfft(samples)[: size // 2 + 1]
    resampled = torch.fft.irfft(spectrum, size) * (RATE / rate)  # what lies above the new rate's half is left out
    padded = nn.functional.pad(resampled, (0, max(0, WINDOW - size)))
    stft = torch.stft(padded, 512, HOP, WINDOW, torch.hann_window(WINDOW), return_complex=True)
    power = mel_bands() @ stft.abs().square()
    loudness = 10 * power.sum(0).clamp(min=1e-10).log10()
    loud = (loudness > loudness.max() - LOUD).nonzero().squeeze(1)
    start, stop = max(0, int(loud[0]) - MARGIN), int(loud[-1]) + 1 + MARGIN
    return power[:, start:stop].clamp(min=1e-10).log()[:, :MAX_FRAMES]


@functools.cache
def mel_bands() -> Tensor:
    """Triangles (bands, frequencies) of equal width in mel, 2595 log10(1 + f / 700)."""
    edges = 700 * (10 ** (torch.linspace(0, 2595 * math.log10(1 + RATE / 1400), MELS + 2) / 2595) - 1)
    frequencies = torch.linspace(0, RATE / 2, 257)
    low, middle, high = (edges[at : at + MELS, None] for at in range(3))
    return torch.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle)).clamp(min=0)


def folds(speech: Sequence[Spoken]) -> list[set[str]]:
    """The speakers in :data:`FOLDS` parts with similar numbers of recordings."""
    counts: Counter[str] = Counter(TOGETHER.get(spoken.speaker, spoken.speaker) for spoken in speech)
    parts: list[set[str]] = [set() for _ in range(FOLDS)]
    for speaker, _ in counts.most_common():
        min(parts, key=lambda part: sum(counts[one] for one in part)).add(speaker)
    return [part | {other for other, one in TOGETHER.items() if one in part} for part in parts]


def data(speech: Sequence[Spoken], held_out: set[str]) -> tuple[Part, Part]:
    """The training part, and the part of the speakers ``held_out``."""
    chosen = [[spoken for spoken in speech if (spoken.speaker in held_out) == tested] for tested in (False, True)]
    return tensors(chosen[0]), tensors(chosen[1])


def tensors(speech: Sequence[Spoken]) -> Part:
    """Recordings padded to one length."""
    features = torch.zeros(len(speech), MELS, MAX_FRAMES)
    letters = torch.zeros(len(speech), max(len(spoken.letters) for spoken in speech), dtype=torch.long)
    for row, spoken in enumerate(speech):
        features[row, :, : spoken.features.shape[1]] = spoken.features
        letters[row, : len(spoken.letters)] = torch.tensor([1 + LETTERS.index(letter) for letter in spoken.letters])
    frames = torch.tensor([(spoken.features.shape[1] + 1) // 2 for spoken in speech])
    return features, (letters, frames, torch.tensor([len(spoken.letters) for spoken in speech]))


def listener() -> nn.Module:
    """The network: features (N, bands, frames) to log-probabilities of blank and letters (half the frames, N, 27)."""

    def layer(inputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv1d(inputs, CHANNELS, 5, stride, 2), nn.BatchNorm1d(CHANNELS), nn.ReLU(), nn.Dropout(DROPOUT)]

    layers = [*layer(MELS, 2), *(module for _ in range(DEPTH) for module in layer(CHANNELS, 1))]
    return nn.Sequential(*layers, nn.Conv1d(CHANNELS, 1 + len(LETTERS), 1), FramesFirst(), nn.LogSoftmax(-1))


class FramesFirst(nn.Module):
    """Transpose (N, letters, frames) to (frames, N, letters) for CTC."""

    def forward(self, scores: Tensor) -> Tensor:
        return scores.permute(2, 0, 1)


@dataclass(frozen=True)
class Masking:
    """SpecAugment without warping: set ``count`` runs of bands and of frames per recording to the mean, 0."""

    bands: int = 8
    frames: int = 12
    count: int = 2

    def draw(self, rng: np.random.Generator, batch_size: int) -> Tensor:
        """Random runs, (N, 2, count, 2): start, from 0 to 1, and length, for bands and frames."""
        starts = rng.random((batch_size, 2, self.count))
        lengths = rng.integers(0, [[self.bands + 1], [self.frames + 1]], (batch_size, 2, self.count))
        return torch.from_numpy(np.stack([starts, lengths], -1)).float()

    def apply(self, inputs: Tensor, draws: Tensor) -> Tensor:
        """Mask features (N, bands, frames)."""
        return (
            inputs * self._kept(draws[:, 0], inputs.shape[1])[:, :, None] * self._kept(draws[:, 1], inputs.shape[2])[:, None]
        )

    @staticmethod
    def _kept(draws: Tensor, size: int) -> Tensor:
        """Mask (N, size): 0 within a run, else 1."""
        starts, lengths = draws[..., :1] * size, draws[..., 1:]
        at = torch.arange(size)
        return ((at < starts) | (at >= starts + lengths)).all(1)


SMOOTHING = hp.LabelSmoothing(eps=0.1)
ARMS: dict[str, tuple[hp.LabelSmoothing | None, Masking | None]] = {
    "plain": (None, None),
    "smoothing 0.1": (SMOOTHING, None),
    "masking": (None, Masking()),
    "masking and smoothing 0.1": (SMOOTHING, Masking()),
}


def train_arm(name: str, train: Part, test: Part, *, seed: int, epochs: int = EPOCHS) -> tuple[nn.Module, dict[str, float]]:
    """Train a model; returns it, its letter error rate and loss on test speakers, and its error rate in training."""
    smoothing, masking = ARMS[name]
    torch.manual_seed(seed)
    result = hp.fit(
        listener(),
        train,
        optimizer=functools.partial(torch.optim.AdamW, lr=LR, weight_decay=0.01),
        loss=nn.CTCLoss(zero_infinity=True),
        epochs=epochs,
        batch_size=BATCH_SIZE,
        tricks=hp.Tricks(cyclical=hp.Cyclical(), label_smoothing=smoothing),
        augment=masking,
        clip_norm=5.0,
        seed=seed,
        test=test,
        metrics={"error_rate": error_rate},
    )
    again = hp.evaluate(result.model, train, loss=nn.CTCLoss(zero_infinity=True), metrics={"error_rate": error_rate})
    return result.model, {
        "letter error rate": result.metrics["test_error_rate"],
        "test loss": result.metrics["test_loss"],
        "error rate in training": again["error_rate"],
    }


def error_rate(model: nn.Module, part: Part) -> float:
    """Edit distance from the output to the true letters, per true letter."""
    _, (letters, _, lengths) = part
    said = [row[:length].tolist() for row, length in zip(letters, lengths, strict=True)]
    edits = sum(distance(mine, true) for mine, true in zip(heard(model, part), said, strict=True))
    return edits / int(lengths.sum())


@torch.no_grad()
def heard(model: nn.Module, part: Part) -> list[list[int]]:
    """The letters of the best path, without repeats and blanks."""
    features, (_, frames, _) = part
    best = model(features).argmax(-1).T
    paths = (torch.unique_consecutive(row[:count]) for row, count in zip(best, frames, strict=True))
    return [path[path > 0].tolist() for path in paths]


def distance(first: Sequence[int], second: Sequence[int]) -> int:
    """Levenshtein distance: insertions, deletions and substitutions."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        corner, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (a != b))
    return row[-1]


def main(argv: Sequence[str] | None = None) -> None:
    chosen = flags(__doc__, FOLDS, argv)
    question = "do label smoothing and masking lower the letter error rate on speakers that were never heard?"
    record = Record("speech", question, {"letter error rate": False, "test loss": False, "error rate in training": False})
    speech, epochs = load(klettres()), 1 if chosen.quick else EPOCHS
    parts = folds(speech)
    for seed in range(chosen.seeds):
        train, test = data(speech, parts[seed % FOLDS])
        for name in ARMS:
            model, found = train_arm(name, train, test, seed=seed, epochs=epochs)
            record.add(name, found)
    plain, *others = ARMS
    for name in others:
        record.compare(name, plain)
    record.compare(others[-1], others[1])
    facts = {"syllables": len(speech), "folds": [sorted(part) for part in parts]}
    record.finish(chosen.out, **facts, epochs=epochs, batch_size=BATCH_SIZE, rate=LR)
    said = [spoken.letters for spoken in speech if spoken.speaker in parts[seed % FOLDS]]
    for true, row in list(zip(said, heard(model.eval(), test), strict=True))[::8]:
        print(f"{true:8} heard as {''.join(LETTERS[letter - 1] for letter in row)}")


if __name__ == "__main__":
    run(main)
