"""The translation recipe, on indexes in apt's form with made-up packages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

import heptane as hp
import translation

pytest.importorskip("tokenizers")
pytest.importorskip("sacrebleu")

THINGS = {"cat": "Katze", "dog": "Hund", "bird": "Vogel", "horse": "Pferd", "cow": "Kuh", "fish": "Fisch"}
COLOURS = {"red": "rot", "blue": "blau", "green": "grün", "black": "schwarz", "white": "weiß", "grey": "grau"}


def write(folder: Path, packages: list[tuple[str, str | None, str, str]]) -> Path:
    """The three indexes, of (package, source or None, English, German)."""
    files: dict[str, list[str]] = {"Packages": [], "Translation-en": [], "Translation-de": []}
    for name, source, english, german in packages:
        md5 = hashlib.md5(english.encode()).hexdigest()
        of_source = f"Source: {source}\n" if source else ""
        files["Packages"].append(f"Package: {name}\n{of_source}Section: misc\nDescription-md5: {md5}\n")
        for language, text in (("en", english), ("de", german)):
            lines = text.replace("\n", "\n ")
            files[f"Translation-{language}"].append(
                f"Package: {name}\nDescription-md5: {md5}\nDescription-{language}: {lines}\n"
            )
    for name, stanzas in files.items():
        (folder / name).write_text("\n".join(stanzas), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    both = [(a, b) for a in THINGS.items() for b in COLOURS.items()]
    packages = [
        (f"p{at}", None, f"{thing} that is {colour}\nThe {thing} is {colour}.", f"{ding} ist {farbe}\n{ding}: {farbe}.")
        for at, ((thing, ding), (colour, farbe)) in enumerate(both)
    ]
    return write(tmp_path, packages)


def test_titles_and_paragraphs_pair_up(tmp_path):
    english = "a title\nfirst line\nsecond line\n.\nanother paragraph"
    packages = [
        ("one", None, english, "ein Titel\nerste Zeile,\n zweite\n.\nnoch ein Absatz"),
        ("two", "other (1.0)", "not alike\nfirst\n.\nsecond", "ungleich\nerster"),
        ("three", "other", "a copy", "a copy"),
        ("four", None, "word " * 9, "Wort"),
    ]
    found = translation.parts(write(tmp_path, packages))
    wanted = {
        ("a title", "ein Titel"),
        ("first line second line", "erste Zeile, zweite"),
        ("another paragraph", "noch ein Absatz"),
    }
    assert {pair for part in found.values() for pair in part} == wanted


def test_no_source_and_no_text_is_in_two_parts(monkeypatch):
    monkeypatch.setattr(translation, "TEST_SHARE", 0.2)
    pairs = {f"s{at}": [(f"own {at}", f"eigen {at}"), (f"Shared {at % 3}", f"geteilt {at}")] for at in range(50)}
    found = translation.split(pairs)
    assert len(found["test"]) == 20
    texts = {part: {text.lower() for pair in some for text in pair} for part, some in found.items()}
    assert texts["test"].isdisjoint(texts["valid"] | texts["train"])
    assert texts["valid"].isdisjoint(texts["train"])
    own = {part: sum(english.startswith("own") for english, _ in some) for part, some in found.items()}
    assert own == {"test": 10, "valid": 10, "train": 30}


def test_subwords_give_a_text_back():
    subwords = translation.Subwords(["Größe der Dateien", "size of files"], 300)
    assert len(subwords) <= 300
    for text in ("Größe der Dateien", "Übergröße: 12 €"):
        assert subwords.decode(subwords.encode(text)) == text
        assert min(subwords.encode(text)) > translation.END


def test_the_model_is_to_say_the_next_subword():
    inputs, targets = translation.sample([7, 8], [9, 10, 11])
    assert inputs == {"source": [7, 8, translation.END], "target": [translation.START, 9, 10, 11]}
    assert targets == [9, 10, 11, translation.END]


def test_neither_padding_nor_what_comes_later_matters():
    model = translation.Translator(20).eval()
    source, target = torch.tensor([[5, 6, 7, 2]]), torch.tensor([[1, 8, 9]])
    scores = model(source, target)
    padded = model(torch.tensor([[5, 6, 7, 2, 0, 0]]), torch.tensor([[1, 8, 9, 0]]))
    torch.testing.assert_close(padded[:, :3], scores, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model(source, torch.tensor([[1, 8, 3]]))[:, :2], scores[:, :2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(model(torch.tensor([[5, 6, 4, 2]]), target), scores)


def test_greedy_takes_the_likeliest_up_to_the_end():
    model = translation.Translator(20).eval()
    source = torch.tensor([[5, 6, 7, 2], [9, 2, 0, 0]])
    for row, said in zip(source, model.greedy(source), strict=True):
        told = torch.tensor([[translation.START, *said]])
        best = model(row[None], told).argmax(-1)[0].tolist()
        assert best[: len(said)] == said
        assert len(said) == 4 + 10 or best[len(said)] == translation.END


def test_bleu_is_100_for_the_references_and_less_for_others(monkeypatch):
    references = ["ein Wort und noch eines", "das ist ein ganzer Satz"]
    monkeypatch.setattr(translation, "translations", lambda *_: list(references))
    assert translation.bleu(None, None, subwords=None, references=references) == pytest.approx(100)
    assert translation.bleu(None, None, subwords=None, references=references[::-1]) < 20


def test_a_few_sentences_are_learnt(folder, monkeypatch):
    for name, value in {"WIDTH": 32, "LAYERS": 1, "BATCH_SIZE": 8, "LR": 1e-2, "TEST_SHARE": 0.1}.items():
        monkeypatch.setattr(translation, name, value)
    found = translation.parts(folder)
    subwords = translation.Subwords([text for pair in found["train"] for text in pair], 400)
    results = {eps: translation.train_arm(eps, found, subwords, seed=0, epochs=15)[1] for eps in (0.0, 0.2)}
    assert all(result["BLEU"] > 60 for result in results.values())  # of pairs of known words that were not seen together
    assert results[0.0]["test loss"] < results[0.2]["test loss"]  # the loss is unsmoothed
    assert results[0.0]["perplexity"] == pytest.approx(torch.tensor(results[0.0]["test loss"]).exp().item())


def test_the_short_version_measures_every_arm(folder, tmp_path, monkeypatch, capsys):
    for name, value in {"WIDTH": 16, "BATCH_SIZE": 16, "TEST_SHARE": 0.1, "descriptions": lambda: folder}.items():
        monkeypatch.setattr(translation, name, value)
    translation.main(["--quick", "--out", str(tmp_path / "out")])
    found = json.loads((tmp_path / "out" / "recipe-translation.json").read_text())
    assert list(found["arms"]) == ["smoothing 0", "smoothing 0.1", "smoothing 0.2"]
    assert found["data"]["train"] > 20
    assert "Katze" in capsys.readouterr().out
    assert "Katze" not in json.dumps(found, ensure_ascii=False)  # descriptions are not ours to keep


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(hp.InputError, match=r'tokenizers, which is missing: pip install "heptane\[recipes\]"'):
        translation.Subwords(["a"])
