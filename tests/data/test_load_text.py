"""Text: tokenized once, cached, in batches of similar lengths, padded to the longest."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import heptane as hp
from heptane.data.batches import BatchTransform, TensorSource
from heptane.data.length_order import length_order
from heptane.data.load_preprocess import load_preprocess
from heptane.data.preprocess import Preprocess
from heptane.data.texts import load_text, token_store
from heptane.data.texts.token_store import TokenRows, TokenStore
from heptane.distributed.workers import Worker
from heptane.pretrained.models import build
from heptane.pretrained.text_model import TextNet

pytest.importorskip("tokenizers")
N = 120


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few texts are cached, in several pieces."""
    monkeypatch.setattr(load_text, "SMALL", 0)
    monkeypatch.setattr(token_store, "PIECE_TEXTS", 16)


def frame(count: int = N) -> pd.DataFrame:
    random = np.random.default_rng(0)
    labels = np.where(np.arange(count) % 2, "good", "bad")
    words = np.array([f"w{n}" for n in range(40)])
    texts = [
        " ".join([*random.choice(words, 1 + int(random.integers(0, 30))), "great" if label == "good" else "awful"])
        for label in labels
    ]
    return pd.DataFrame({"review": texts, "label": labels})


def written(folder: Path, kind: str = "csv") -> Path:
    path = folder / f"reviews.{kind}"
    frame().to_parquet(path) if kind == "parquet" else frame().to_csv(path, index=False)
    return path


def loaded(path: Any, cache: Path | str = "off", **how: Any) -> hp.Data:
    data = hp.load_data(path, reading=hp.Reading(cache=cache), **{"text": "review", **how})
    assert data.kind == "text"
    assert isinstance(data.train[0]["input_ids"], TokenRows)
    return data


def every(data: hp.Data) -> list[torch.Tensor]:
    parts = [part for part in (data.train, data.valid, data.test) if part is not None]
    return [tensor for inputs, targets in parts for tensor in (inputs["input_ids"][:], inputs["attention_mask"][:], targets)]


def check_equal(one: hp.Data, two: hp.Data) -> None:
    for a, b in zip(every(one), every(two), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert one.preprocess == two.preprocess


def test_a_table_from_a_file_a_frame_and_the_cache_gives_the_same_tokens(tmp_path: Path) -> None:
    data = loaded(frame())
    assert (data.class_names, data.num_classes, len(data.train[1]), len(data.files["test"])) == (("bad", "good"), 2, 96, 12)
    for kind in ("csv", "parquet", "csv.gz"):
        path = written(tmp_path, kind)
        for _ in range(2):
            check_equal(loaded(path, tmp_path / "cache"), data)
    assert len(list(tmp_path.glob("cache/*/tokens.arrow"))) == 3


def test_texts_are_tokenized_once_and_again_if_the_file_or_the_way_changed(tmp_path: Path, monkeypatch: Any) -> None:
    path, cache = written(tmp_path), tmp_path / "cache"
    loaded(path, cache, seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(load_text, "write_tokens", None)  # fails if it is called
        loaded(path, cache, seed=1)
        with pytest.raises(TypeError):
            loaded(path, cache, seed=1, text=hp.Text("review", max_tokens=9))
    before = path.stat()
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    check_equal(loaded(path, cache, seed=1), loaded(pd.read_csv(path), seed=1))


def test_a_truncated_file_of_tokens_is_written_again(tmp_path: Path) -> None:
    path, cache = written(tmp_path), tmp_path / "cache"
    loaded(path, cache)
    (tokens,) = cache.glob("*/tokens.arrow")
    for kept in (0, 50, tokens.stat().st_size - 9):
        tokens.write_bytes(tokens.read_bytes()[:kept])
        check_equal(loaded(path, cache), loaded(frame()))


def test_a_batch_is_padded_to_its_longest_text_and_masked() -> None:
    store = TokenStore(list(token_store.pieces_of(iter([(np.arange(1, 8, dtype=np.int32), np.array([1, 4, 2]))]))))
    rows = token_store.padded(store, [2, 0, 1], pad=9)
    assert rows["input_ids"][[0, 1]].tolist() == [[6, 7], [1, 9]]
    assert rows["attention_mask"][[0, 1]].tolist() == [[1, 1], [1, 0]]
    assert rows["input_ids"][:].tolist() == [[6, 7, 9, 9], [1, 9, 9, 9], [2, 3, 4, 5]]
    assert rows["input_ids"][-1].tolist() == [2, 3, 4, 5]
    assert pickle.loads(pickle.dumps(rows))["input_ids"][1:].tolist() == rows["input_ids"][1:].tolist()


def test_long_texts_are_cut_with_a_note_and_empty_ones_have_a_token() -> None:
    table = frame()
    table.loc[3, "review"] = None
    data = loaded(table, text=hp.Text("review", max_tokens=5))
    assert any(note.endswith("text(s) were cut at 5 tokens: --max-tokens sets another limit") for note in data.notes)
    assert max(tensor.shape[-1] for tensor in every(data)[::3]) == 5
    assert min(int(tensor.sum(1).min()) for tensor in every(data)[1::3]) == 1


def test_batches_are_of_similar_length_and_a_function_of_seed_and_epoch() -> None:
    lengths = torch.randint(1, 100, (1003,), generator=torch.Generator().manual_seed(0))
    orders = [length_order(hp.epoch_order(1003, 5, epoch), lengths, 8, 5, epoch) for epoch in (0, 1, 0)]
    assert torch.equal(orders[0], orders[2])
    assert not torch.equal(orders[0], orders[1])
    assert sorted(orders[0].tolist()) == list(range(1003))
    spread = [float(lengths[batch].max() - lengths[batch].min()) for batch in orders[0].split(8)]
    assert sum(spread) / len(spread) < 5
    means = torch.stack([lengths[batch].float().mean() for batch in orders[0].split(8)[:-1]])
    assert abs(float(torch.corrcoef(torch.stack([means, torch.arange(len(means)).float()]))[0, 1])) < 0.3


def batches(data: hp.Data, start: int, worker: Worker) -> list[Any]:
    source = TensorSource(*data.train, batch_size=8, seed=2)
    found = source.batches(start, 24, BatchTransform(torch.device("cpu")))
    return [(step, batch.indices, batch.take(worker.share(batch.size))) for step, batch in found]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_workers_share_the_same_batches_also_after_a_start_in_mid_epoch(size: int) -> None:
    data = loaded(frame())
    whole = batches(data, 0, Worker(0, 1))
    parts = [batches(data, 5, Worker(rank, size)) for rank in range(size)]
    for at, (step, indices, (inputs, targets)) in enumerate(whole[5:]):
        assert all(part[at][:2] == (step, indices) for part in parts)
        assert torch.equal(torch.cat([part[at][2][1] for part in parts]), targets)
        rows = [row[mask > 0].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        shared = [part[at][2][0] for part in parts]
        pairs = [pair for one in shared for pair in zip(one["input_ids"], one["attention_mask"], strict=True)]
        assert [row[mask > 0].tolist() for row, mask in pairs] == rows


def fitted(data: hp.Data, **how: Any) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = TextNet(2, width=8)
    hp.fit(model, data.train, valid=data.valid, optimizer="adamw", lr=0.05, batch_size=8, seed=1, epochs=3, **how)
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_training_is_the_same_from_memory_and_from_the_cache_and_resumes_exactly(tmp_path: Path, monkeypatch: Any) -> None:
    data = loaded(written(tmp_path), tmp_path / "cache")
    whole = fitted(data)
    assert all(map(torch.equal, whole, fitted(loaded(frame()))))
    extras, read = hp.Extras(checkpoint_every=5), [0]
    take = TokenRows.__getitem__

    def stop(self: TokenRows, at: Any) -> Any:
        read[0] += 1
        if read[0] == 70:
            raise KeyboardInterrupt
        return take(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(TokenRows, "__getitem__", stop)
        with pytest.raises(KeyboardInterrupt):
            fitted(data, run_dir=tmp_path / "run", extras=extras)
    assert all(map(torch.equal, whole, fitted(data, run_dir=tmp_path / "run", extras=extras, resume=True)))


def test_a_small_network_learns_and_predicts_new_texts(tmp_path: Path) -> None:
    data = loaded(frame(400))
    torch.manual_seed(0)
    model = build("text", input_shape=data.input_shape, num_classes=2)
    result = hp.fit(model, data.train, test=data.test, optimizer="adamw", lr=0.02, batch_size=16, epochs=15)
    assert result.metrics["test_accuracy"] >= 0.95
    assert isinstance(data.preprocess, Preprocess)
    preprocess = load_preprocess(json.loads(json.dumps(data.preprocess.record())))
    (tmp_path / "new.txt").write_text("w3 AWFUL w4")
    sources = [
        ["w3 awful w4", "a great w1"],
        pd.DataFrame({"review": ["awful", "great"]}),
        [{"review": "w1 awful"}, {"review": "great"}],
    ]
    for source in sources:
        names, inputs = preprocess.inputs(source)
        assert names == ["0", "1"]
        assert model.eval()(**inputs).argmax(1).tolist() == [0, 1]
    assert model(**preprocess.inputs(tmp_path / "new.txt")[1]).argmax(1).tolist() == [0]


def test_padding_changes_no_output() -> None:
    model = TextNet(3).eval()
    ids = torch.tensor([[5, 6, 7, 0, 0]])
    torch.testing.assert_close(model(ids, (ids > 0).long()), model(ids[:, :3], torch.ones(1, 3, dtype=torch.long)))


def test_folders_of_text_files_flat_and_in_parts(tmp_path: Path) -> None:
    for part in ("train", "valid", "test"):
        for number, (text, label) in enumerate(frame(60).itertuples(index=False)):
            file = tmp_path / "parts" / part / label / f"{number}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((text + " naïve").encode("cp1252" if number % 5 == 0 else "utf-8"))
    whole = loaded(tmp_path / "parts", text=None)
    assert [len(part[1]) for part in (whole.train, whole.valid, whole.test) if part] == [60, 60, 60]
    flat = loaded(tmp_path / "parts" / "train", tmp_path / "cache", text=None)
    assert [len(part[1]) for part in (flat.train, flat.valid, flat.test) if part] == [48, 6, 6]
    assert flat.files["test"][0].startswith("bad/")
    with pytest.raises(hp.InputError, match="the folders are the classes"):
        loaded(tmp_path / "parts", text=None, label="x")


def test_a_number_can_be_predicted_from_text() -> None:
    table = frame().assign(label=np.random.default_rng(1).normal(7, 2, N))
    data = loaded(table)
    assert data.num_classes is None
    assert abs(float(data.train[1].mean())) < 1e-5
    assert isinstance(data.preprocess, Preprocess)
    assert data.preprocess.outputs(torch.zeros(1)).item() == pytest.approx(table["label"].mean(), abs=0.3)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"text": "revue"}, r"text='revue' is not a column \(did you mean review\?\): the table has 'review', 'label'"),
        ({"text": ""}, "text='': expected the name of a column"),
        ({"text": hp.Text()}, "text needs the name of a column"),
        ({"label": "nothing"}, "label='nothing' is not a column"),
        ({"image_size": 8}, "image_size=8: text has none"),
        ({"text": hp.Text("review", tokenizer="/no/such")}, "tokenizer='/no/such' cannot be read"),
    ],
)
def test_what_is_refused(how: dict[str, Any], message: str) -> None:
    with pytest.raises(hp.InputError, match=message):
        loaded(frame(), **how)


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(hp.InputError, match=r'text needs tokenizers, which is missing: pip install "heptane\[text\]"'):
        loaded(frame())


def test_the_tokenizer_of_a_pretrained_model_is_used(tmp_path: Path) -> None:
    content = load_text.learn_tokenizer(frame()["review"])
    (tmp_path / "tokenizer.json").write_text(content)
    data = loaded(frame(), text=hp.Text("review", tokenizer=tmp_path))
    assert isinstance(data.preprocess, load_text.TextPreprocess)
    assert data.preprocess.tokenizer == content


def test_a_hugging_face_data_set_of_texts_with_splits(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"sentence": datasets.Value("string"), "mood": datasets.ClassLabel(names=["bad", "good"])})
    rows = {"sentence": frame()["review"].tolist(), "mood": frame()["label"].tolist()}
    split = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": split, "test": split.select(range(7))}).save_to_disk(str(tmp_path / "saved"))
    for text in ("sentence", hp.Text()):
        data = loaded(tmp_path / "saved", tmp_path / "cache", text=text)
        assert data.class_names == ("bad", "good")
        assert [len(part[1]) for part in (data.train, data.valid, data.test) if part] == [108, 12, 7]
    with pytest.raises(hp.InputError, match="column 'sentence' holds text: to predict from it pass --text sentence"):
        hp.load_data(tmp_path / "saved")
