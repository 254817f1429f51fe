"""Folders of weights: a run's, and Hugging Face's in one or several files; indexes that are wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from heptane import InputError, load_weights
from heptane.pretrained.weights import files, read_weights

INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, torch.Tensor]:
    return {"0.weight": torch.full((3, 4), 2.0), "0.bias": torch.full((3,), 5.0)}


def in_parts(folder: Path, listed: object = None, ending: str = ".safetensors") -> Path:
    """A folder with the tensors in two files, and an index that says so, or says ``listed``."""
    folder.mkdir(exist_ok=True)
    names = dict(zip(tensors(), (f"part-{n}{ending}" for n in (1, 2)), strict=True))
    for name, part in names.items():
        held = {name: tensors()[name], "extra": torch.ones(1)}
        save_file(held, folder / part) if ending == ".safetensors" else torch.save(held, folder / part)
    index = INDEX if ending == ".safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": names if listed is None else listed}))
    return folder


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_a_folder_in_parts_gives_what_its_index_says(tmp_path: Path, ending: str) -> None:
    found = read_weights(in_parts(tmp_path, ending=ending))
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors().items())


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "other.safetensors", "net.pth"])
def test_the_one_file_in_a_folder_is_found_and_named(tmp_path: Path, name: str) -> None:
    save_file(tensors(), tmp_path / name) if name.endswith("safetensors") else torch.save(tensors(), tmp_path / name)
    model = nn.Sequential(nn.Linear(4, 3))
    assert str(load_weights(model, tmp_path)).startswith(f"source: {tmp_path}: {name}\nloaded 2 tensors")
    assert torch.equal(model[0].bias.detach(), tensors()["0.bias"])


def test_safetensors_come_before_a_pickle(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    assert "0.weight" in read_weights(in_parts(tmp_path))
    save_file({"whole": torch.ones(1)}, tmp_path / "model.safetensors")
    assert list(read_weights(tmp_path)) == ["whole"]


def test_several_files_under_other_names_are_not_guessed_at(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        save_file(tensors(), tmp_path / name)
    with pytest.raises(InputError, match=r"several weight files \(a\.safetensors, b\.safetensors\); give one of them"):
        read_weights(tmp_path)


@pytest.mark.parametrize(
    ("holds", "said"), [("race.json", "a race, which stores no models"), ("checkpoints", "an unfinished run")]
)
def test_a_folder_of_heptane_without_a_model_says_why(tmp_path: Path, holds: str, said: str) -> None:
    (tmp_path / holds).mkdir() if holds == "checkpoints" else (tmp_path / holds).write_text("{}")
    with pytest.raises(InputError, match=said):
        read_weights(tmp_path)


@pytest.mark.parametrize("part", [
    "../out.safetensors", "a/../../out.safetensors", "..\\out.safetensors", "/etc/out.safetensors", "C:\\out.safetensors",
    "\\\\host\\out.safetensors",
])  # fmt: skip
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, part: str) -> None:
    save_file(tensors(), tmp_path / "out.safetensors")
    with pytest.raises(InputError, match="outside its folder; do not trust this model"):
        read_weights(in_parts(tmp_path / "in", {"0.weight": part}))


@pytest.mark.parametrize(("listed", "said"), [
    ({"0.weight": "part-9.safetensors"}, r"names 'part-9\.safetensors', which is not there; download it again"),
    ({"0.weight": "x" * 5000 + ".safetensors"}, "which is not there"),
    ({"0.weight": "a\0b.safetensors"}, "which is not there"),
    ({"0.weight": "a\nb.safetensors"}, "which is not there"),
    ({"0.weight": "model.safetensors.index.json"}, r"expected files that end in \.safetensors"),
    ({"0.weight": "part-1.bin"}, r"expected files that end in \.safetensors"),
    ({"0.weight": ""}, "expected files that end in"),
    ({"0.bias": "part-1.safetensors"}, r"lists 0\.bias in part-1\.safetensors, which does not hold it; download both again"),
    ({"evil\nname": "part-1.safetensors"}, r"lists 'evil\\nname' in part-1\.safetensors, which does not"),
    ({"0.weight": 5}, "has no weight_map from names to files"),
    ({}, "has no weight_map"),
    ([], "has no weight_map"),
])  # fmt: skip
def test_an_index_that_lies_is_one_line(tmp_path: Path, listed: object, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_weights(in_parts(tmp_path, listed))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[" * 100_000, b"5", b"", b'{"weight_map": ' + b"9" * 5000 + b"}"])
def test_an_index_that_is_damaged_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json .*; download it again") as caught:
        read_weights(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_an_index_that_is_huge_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_parts(tmp_path)
    monkeypatch.setattr(files, "LARGEST_JSON", 10)
    with pytest.raises(InputError, match="is larger than 0 MB"):
        read_weights(tmp_path)


def test_a_shard_that_is_torn_or_runs_code_is_named(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    (in_parts(tmp_path) / "part-2.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match=r"part-2\.safetensors is damaged or not a safetensors file"):
        read_weights(tmp_path)
    torch.save({"0.bias": Bomb()}, in_parts(tmp_path / "pickles", ending=".bin") / "part-2.bin")
    with pytest.raises(InputError, match=r"part-2\.bin refused: reading it could run code"):
        read_weights(tmp_path / "pickles")
    assert not (tmp_path / "ran").exists()


def test_a_header_that_claims_a_huge_tensor_is_refused(tmp_path: Path) -> None:
    header = json.dumps({"0.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(InputError, match="is damaged or not a safetensors file"):
        read_weights(tmp_path)


def test_links_within_a_cache_are_followed(tmp_path: Path) -> None:
    blobs = in_parts(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for file in blobs.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert read_weights(snapshot).keys() == tensors().keys()


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b.pth", "~nobody_at_all/w.pth"])
def test_a_path_that_cannot_be_is_no_such_file(path: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_weights(nn.Linear(2, 2), path)
