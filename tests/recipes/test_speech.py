"""The speech recipe on tones in place of syllables, with the file layout of klettres-data."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import heptane as hp
import speech

soundfile = pytest.importorskip("soundfile")

PITCHES = {"A": 300.0, "O": 700.0, "U": 1500.0, "E": 3000.0}
LANGUAGES = ("da", "de", "en", "en_GB", "es", "fr", "it")


def tone(pitch: float, rate: int, seconds: float = 0.3) -> np.ndarray:
    return np.sin(2 * math.pi * pitch * np.arange(round(rate * seconds)) / rate).astype("f4")


def recording(name: str, rate: int) -> np.ndarray:
    """Half a second of silence, a tone per letter, half a second of silence."""
    silence = np.zeros(rate // 2, "f4")
    return np.concatenate([silence, *(tone(PITCHES[letter], rate) for letter in name), silence])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for at, language in enumerate(LANGUAGES):
        (tmp_path / language / "syllab").mkdir(parents=True)
        names = ["AO", "UE", "OA", "EU"][: 2 + at % 3]
        rate, channels = ((44_100, 2), (16_000, 1), (22_050, 1))[at % 3]
        for name in names:
            samples = np.repeat(recording(name, rate)[:, None], channels, 1) / (1 + at)
            soundfile.write(tmp_path / language / "syllab" / f"{name.lower()}.ogg", samples, rate)
        sounds = [
            f'<sound name="{name}" file="{language}/syllab/{name.lower()}.ogg" />' for name in [*names, "EE", "\u0416\u0415"]
        ]
        letters = "<alphabet><sound name='A' file='a.ogg'/></alphabet>"
        text = f"<klettres><language>{letters}<syllables>{''.join(sounds)}</syllables></language></klettres>"
        (tmp_path / language / "sounds.xml").write_text(text, encoding="utf-8")
    return tmp_path


def test_syllables_that_are_there_and_in_latin_letters_are_loaded(folder):
    found = speech.load(folder)
    assert [spoken.letters for spoken in found if spoken.speaker == "es"] == ["AO", "UE", "OA"]
    assert {spoken.speaker for spoken in found} == set(LANGUAGES)
    for spoken in found:  # two tones and the margins: of 2 seconds at most, less than one is left
        assert 55 <= spoken.features.shape[1] <= 80
    of_one = torch.cat([spoken.features for spoken in found if spoken.speaker == "it"], 1)
    torch.testing.assert_close(of_one.mean(1), torch.zeros(speech.MELS), atol=1e-4, rtol=0)
    torch.testing.assert_close(of_one.std(1), torch.ones(speech.MELS), atol=1e-4, rtol=0)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(hp.InputError, match=r"holds no LANGUAGE/sounds\.xml with syllables"):
        speech.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "letters"), [("ŘE", "RE"), ("BÅ", "BA"), ("HØ", "HO"), ("Te", "TE"), ("FUß", "FUSS"), ("ЖЕ", "")]
)
def test_accents_are_left_out(name, letters):
    assert speech.spelt(name) == letters


def test_a_tone_is_loudest_in_its_band_at_any_rate():
    edges = 700 * (10 ** (np.linspace(0, 2595 * math.log10(1 + 8000 / 700), speech.MELS + 2) / 2595) - 1)
    for pitch in PITCHES.values():
        nearest = int(np.abs(edges[1:-1] - pitch).argmin())
        for rate in (16_000, 44_100, 128_000):
            loudest = speech.log_mel(torch.from_numpy(tone(pitch, rate)), rate)[:, 10:20].mean(1).argmax()
            assert abs(int(loudest) - nearest) <= 1


def test_what_lies_above_the_new_rate_does_not_fold_back():
    silent = speech.log_mel(torch.from_numpy(tone(12_000.0, 44_100)), 44_100)[:, 10:20]
    heard = speech.log_mel(torch.from_numpy(tone(4_000.0, 44_100)), 44_100)[:, 10:20]
    assert silent.max() < heard.max() - 8


def test_no_speaker_is_in_two_folds_and_english_stays_together(folder):
    found = speech.load(folder)
    parts = speech.folds(found)
    assert sorted(speaker for part in parts for speaker in part) == sorted(LANGUAGES)
    assert {"en", "en_GB"} in parts
    for part in parts:
        train, test = speech.data(found, part)
        assert len(train[0]) + len(test[0]) == len(found)
        assert len(test[0]) == sum(spoken.speaker in part for spoken in found)


def test_the_model_gives_as_many_frames_as_the_targets_say(folder):
    part = speech.tensors(speech.load(folder))
    features, (letters, frames, lengths) = part
    output = speech.listener().eval()(features)
    assert output.shape == (speech.MAX_FRAMES // 2, len(features), 27)
    torch.testing.assert_close(output.exp().sum(-1), torch.ones(output.shape[:2]))
    assert lengths.tolist() == [2] * len(features)
    assert speech.LETTERS[letters[0, 0] - 1] == "A"
    filled = (features != 0).any(1).sum(1)
    assert frames.tolist() == [-(-int(count) // 2) for count in filled]


def test_the_best_path_is_read_without_repeats_and_blanks():
    path = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 3, 3]])
    model = torch.nn.Module()
    model.forward = lambda features: torch.nn.functional.one_hot(path.T, 27).float()  # type: ignore[assignment]
    part = torch.zeros(1, speech.MELS, 18), (torch.tensor([[1, 2, 2]]), torch.tensor([7]), torch.tensor([3]))
    assert speech.heard(model, part) == [[1, 1, 2]]  # the frames past the seventh are padding
    assert speech.error_rate(model, part) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("first", "second", "edits"), [("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("ab", "ba", 2)]
)
def test_distance(first, second, edits):
    assert speech.distance([ord(c) for c in first], [ord(c) for c in second]) == edits
    assert speech.distance([ord(c) for c in second], [ord(c) for c in first]) == edits


def test_masking_sets_runs_of_bands_and_frames_to_the_mean():
    bands, frames = [[0.5, 2.0], [0.0, 1.0]], [[0.0, 3.0], [0.9, 5.0]]
    masked = speech.Masking().apply(torch.ones(2, 10, 20), torch.tensor([[bands, frames], [frames, bands]]))
    wanted = torch.ones(2, 10, 20)
    wanted[0, [0, 5, 6]], wanted[0, :, [0, 1, 2, 18, 19]] = 0, 0
    wanted[1, [0, 1, 2, 9]], wanted[1, :, [0, 10, 11]] = 0, 0
    assert torch.equal(masked, wanted)
    drawn = speech.Masking(bands=4, frames=6, count=3).draw(np.random.default_rng(0), 500)
    assert drawn.shape == (500, 2, 3, 2)
    assert [int(drawn[:, kind, :, 1].max()) for kind in (0, 1)] == [4, 6]
    assert 0 <= drawn[..., 0].min() <= drawn[..., 0].max() < 1


def test_tones_are_learnt(folder, monkeypatch):
    monkeypatch.setattr(speech, "BATCH_SIZE", 4)
    train = test = speech.tensors(speech.load(folder))
    model, found = speech.train_arm("plain", train, test, seed=0, epochs=40)
    assert found["letter error rate"] < 0.3
    assert found["error rate in training"] == found["letter error rate"] == speech.error_rate(model.eval(), test)


def test_the_short_version_measures_every_arm(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speech, "klettres", lambda: folder)
    monkeypatch.setattr(speech, "BATCH_SIZE", 8)
    speech.main(["--quick", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "recipe-speech.json").read_text())
    assert list(found["arms"]) == list(speech.ARMS)
    assert sorted(speaker for fold in found["folds"] for speaker in fold) == sorted(LANGUAGES)
    assert found["epochs"] == 1
    assert found["syllables"] == 20
    assert re.search(r"^(AO|UE|OA|EU) +heard as ", capsys.readouterr().out, re.MULTILINE)
