"""Weights: read without running code, matched by name and shape, refused when too few match."""

from __future__ import annotations

import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from heptane import InputError, load_weights
from heptane.pretrained.weights import adapt_channels, read_weights


def net(num_classes: int = 3, channels: int = 3) -> nn.Sequential:
    """Outside the head: 4*channels*9 + 4 (convolution), 4 + 4 (BatchNorm)."""
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )


def filled(model: nn.Module, seed: int = 7) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape, generator=random).mul(9).add(1))
    return model


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# reading


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".PTH", ".SafeTensors"])
def test_all_tensors_arrive_exactly_from_each_kind_of_file(tmp_path: Path, ending: str) -> None:
    source, path = filled(net()).state_dict(), tmp_path / f"w{ending}"
    save_file(source, path) if ending.lower() == ".safetensors" else torch.save(source, path)
    model = net()
    report = load_weights(model, path)
    assert same(copied(model), source)
    assert report.matched == tuple(source)
    assert (report.share, report.missing, report.unexpected, report.left_out, report.resized) == (1.0, (), (), {}, {})


def test_a_pickle_of_the_old_format_is_read(tmp_path: Path) -> None:
    source = filled(net()).state_dict()
    torch.save(source, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    assert same(read_weights(str(tmp_path / "w.pth")), source)


class Bomb:
    """Unpickling it makes a folder: were the code run, the folder would be there."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["zip", "old torch", "bare pickle", "pickle of today", "beside tensors"])
@pytest.mark.parametrize("forced", [False, True])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, kind: str, forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if forced:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap, path = tmp_path / "ran", tmp_path / "w.pth"
    if "pickle" in kind:
        path.write_bytes(pickle.dumps(Bomb(trap), protocol=2 if kind == "bare pickle" else 5))
    elif kind == "beside tensors":
        torch.save({"state_dict": net().state_dict(), "hook": Bomb(trap)}, path)
    else:
        torch.save(Bomb(trap), path, _use_new_zipfile_serialization=kind == "zip")
    model = net()
    before = copied(model)
    refused = r"w\.pth' refused: reading it could run code \((posix|nt)\.mkdir\); get a \.safetensors file"
    other = r"w\.pth' is damaged, or holds more than tensors \(Unsupported operand 149\); get a \.safetensors file"
    with pytest.raises(InputError, match=other if kind == "pickle of today" else refused):
        load_weights(model, path)
    assert not trap.exists()
    assert same(copied(model), before)


def test_a_pickle_that_runs_code_under_another_name_does_not_run(tmp_path: Path) -> None:
    trap, path = tmp_path / "ran", tmp_path / "w.safetensors"
    torch.save(Bomb(trap), path)
    with pytest.raises(InputError, match="damaged or not a safetensors file"):
        read_weights(path)
    assert not trap.exists()


def test_a_pickled_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"refused.*Sequential.*torch.save\(model.state_dict\(\), path\)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
@pytest.mark.parametrize("left", [0, 1, 100, -7])
def test_a_torn_file_is_refused(tmp_path: Path, ending: str, left: int) -> None:
    path = tmp_path / f"w{ending}"
    save_file(net().state_dict(), path) if ending == ".safetensors" else torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(InputError, match=r"weights='.*w\.\w+' is damaged.*; (download|get) "):
        read_weights(path)


def test_a_zip_that_is_no_archive_of_torch_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(InputError, match=r"is damaged, or holds more than tensors \(.*\); get a"):
        read_weights(tmp_path / "w.pth")


def test_files_that_are_not_there_or_not_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"weights='.*no\.pth': no such file; give the path of"):
        load_weights(net(), tmp_path / "no.pth")
    with pytest.raises(InputError, match=r"is a folder without weights: expected one of model\.safetensors"):
        read_weights(tmp_path)
    (tmp_path / "w.h5").write_bytes(b"x")
    with pytest.raises(InputError, match=r"ends in '\.h5': expected \.safetensors, \.pth"):
        read_weights(tmp_path / "w.h5")


def test_the_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    assert list(read_weights("~/w.safetensors")) == ["w"]


@pytest.mark.parametrize("held", [{}, {"epoch": 3}, [torch.ones(2)], torch.ones(2), {"state_dict": {}}, 5, None])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, held: object) -> None:
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(InputError, match="holds no named tensors; save it with"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_unwrapped(tmp_path: Path, wrapper: str) -> None:
    source = filled(net()).state_dict()
    torch.save({"epoch": 3, wrapper: source, "optimizer": {"state": {0: torch.ones(2)}}}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), source)


def test_wrappers_inside_wrappers_are_unwrapped(tmp_path: Path) -> None:
    source = filled(net()).state_dict()
    torch.save({"model": {"state_dict": source}}, tmp_path / "w.pth")
    assert same(read_weights(tmp_path / "w.pth"), source)


# names


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.", "module._orig_mod.", "model.backbone."])
@pytest.mark.parametrize("side", ["file", "model"])
def test_prefixes_of_wrappers_are_translated_either_way(tmp_path: Path, prefix: str, side: str) -> None:
    source = filled(net())
    model: nn.Module = net()
    inner = model
    if side == "model":
        for name in reversed(prefix.rstrip(".").split(".")):
            model = nn.ModuleDict({name: model})
        save_file(source.state_dict(), tmp_path / "w.safetensors")
    else:
        save_file({prefix + name: tensor for name, tensor in source.state_dict().items()}, tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    assert same(copied(inner), copied(source))
    assert report.prefix == (f"{prefix} -> (none)" if side == "file" else f"(none) -> {prefix}")
    assert report.share == 1.0
    assert f"names translated: {report.prefix}" in str(report)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # PyTorch's own, when it imports its compiler
def test_compiled_and_plain_models_exchange_weights(tmp_path: Path) -> None:
    source = filled(net())
    save_file(torch.compile(source).state_dict(), tmp_path / "w.safetensors")
    model = net()
    assert load_weights(model, tmp_path / "w.safetensors").prefix == "_orig_mod. -> (none)"
    assert same(copied(model), copied(source))


def test_a_prefix_on_a_part_of_the_names_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    source = filled(net()).state_dict()
    renamed = {(name if name.startswith("4.") else f"backbone.{name}"): tensor for name, tensor in source.items()}
    save_file(renamed, tmp_path / "w.safetensors")
    model = net()
    report = load_weights(model, tmp_path / "w.safetensors")
    assert same(copied(model), source)
    assert report.unexpected == ()


def test_a_prefix_that_the_model_has_too_is_left_alone(tmp_path: Path) -> None:
    source, model = filled(nn.ModuleDict({"backbone": net()})), nn.ModuleDict({"backbone": net()})
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(model, tmp_path / "w.safetensors").prefix == ""
    assert same(copied(model), copied(source))


# the report


def test_the_report_says_what_was_matched_resized_left_out_and_why(tmp_path: Path) -> None:
    source = dict(filled(net(num_classes=1000)).state_dict())
    del source["1.bias"]
    source["1.weight"] = source["1.weight"].long()
    save_file(source | {"aux.weight": torch.ones(2)}, tmp_path / "w.safetensors")
    model = net(num_classes=3, channels=1)
    before = copied(model)
    report = load_weights(model, tmp_path / "w.safetensors", exclude=["1.running_var"])
    assert report.matched == ("0.bias", "1.running_mean", "1.num_batches_tracked")
    assert report.resized == {"0.weight": "3 -> 1 input channels, summed"}
    assert report.left_out == {
        "1.weight": "torch.int64 in the file, torch.float32 in the model",
        "1.running_var": "excluded",
        "4.weight": "shape (1000, 4) in the file, (3, 4) in the model",
        "4.bias": "shape (1000,) in the file, (3,) in the model",
    }
    assert report.missing == ("1.bias",)
    assert report.unexpected == ("aux.weight",)
    assert report.share == pytest.approx((36 + 4) / (36 + 4 + 4 + 4), rel=1e-12)
    for name in ("1.weight", "1.bias", "1.running_var", "4.weight", "4.bias"):
        assert torch.equal(model.state_dict()[name], before[name])
    lines = str(report).splitlines()
    assert lines[:2] == [
        f"source: {tmp_path / 'w.safetensors'}",
        "loaded 4 tensors: 83.3% of the parameters outside the head",
    ]
    assert "resized 0.weight: 3 -> 1 input channels, summed" in lines
    assert lines[-2:] == ["in the model only: 1.bias", "in the file only: aux.weight"]


def test_long_lists_of_names_are_cut_with_their_number(tmp_path: Path) -> None:
    source = filled(net()).state_dict()
    save_file(source | {f"x{index}": torch.ones(1) for index in range(9)}, tmp_path / "w.safetensors")
    assert str(load_weights(net(), tmp_path / "w.safetensors")).endswith("in the file only: x0, x1, x2, x3 and 5 more")


@pytest.mark.parametrize(("pattern", "gone"), [("4", ["4.weight", "4.bias"]), ("*.bias", ["0.bias", "1.bias", "4.bias"])])
def test_excluded_names_keep_their_values(tmp_path: Path, pattern: str, gone: list[str]) -> None:
    save_file(filled(net()).state_dict(), tmp_path / "w.safetensors")
    model = net()
    before = copied(model)
    report = load_weights(model, tmp_path / "w.safetensors", exclude=pattern, min_match=1.0)
    assert list(report.left_out) == gone
    assert [name for name in before if torch.equal(before[name], model.state_dict()[name])] == gone
    assert report.share == 1.0


def test_an_exclusion_that_matches_nothing_is_refused_and_offers_the_nearest(tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"exclude='0\.wieght' matches none.*did you mean 0\.weight\?"):
        load_weights(net(), tmp_path / "w.safetensors", exclude=["0.wieght"])


# too little


def test_a_share_below_min_match_is_refused_and_the_model_untouched(tmp_path: Path) -> None:
    source = filled(net()).state_dict()
    save_file({"0.bias": source["0.bias"], "1.weight": source["1.weight"], "y": torch.ones(1)}, tmp_path / "w.safetensors")
    model = net()
    before = copied(model)
    expected = 8 / (108 + 4 + 8)
    with pytest.raises(
        InputError, match=r"match 6\.7% .*below min_match=0\.5; in the model only: 0\.weight, .*file only: y; "
    ):
        load_weights(model, tmp_path / "w.safetensors")
    assert same(copied(model), before)
    assert load_weights(model, tmp_path / "w.safetensors", min_match=expected).share == pytest.approx(expected, rel=1e-12)


def test_the_refusal_names_what_was_left_out(tmp_path: Path) -> None:
    save_file({"0.weight": torch.ones(5, 3, 3, 3)}, tmp_path / "w.safetensors")
    with pytest.raises(
        InputError, match=r"left out: 0\.weight \(shape \(5, 3, 3, 3\) in the file, \(4, 3, 3, 3\) in the model"
    ):
        load_weights(net(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, True, "half"])
def test_min_match_out_of_range_is_refused(tmp_path: Path, bad: Any) -> None:
    with pytest.raises(InputError, match="min_match="):
        load_weights(net(), tmp_path / "w.safetensors", min_match=bad)


def test_a_model_that_is_one_layer_counts_that_layer(tmp_path: Path) -> None:
    save_file({"weight": torch.full((2, 3), 5.0)}, tmp_path / "w.safetensors")
    model = nn.Linear(3, 2)
    assert load_weights(model, tmp_path / "w.safetensors", min_match=0.75).share == 0.75
    assert torch.equal(model.weight.detach(), torch.full((2, 3), 5.0))


# values, dtypes, kinds of tensors


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["0.weight", "1.running_var"])
def test_values_that_are_not_finite_are_refused_and_named(tmp_path: Path, bad: float, name: str) -> None:
    source = filled(net()).state_dict()
    source[name].view(-1)[1] = bad
    save_file(source, tmp_path / "w.safetensors")
    model = net()
    before = copied(model)
    with pytest.raises(InputError, match=rf"w\.safetensors': {name} holds NaN or infinity; get an intact copy"):
        load_weights(model, tmp_path / "w.safetensors")
    assert same(copied(model), before)
    assert load_weights(model, tmp_path / "w.safetensors", exclude=[name], min_match=0).left_out == {name: "excluded"}


def test_complex_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = nn.Module()
    model.w = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    torch.save({"w": torch.tensor([1 + 1j, complex(0, math.nan)])}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="w holds NaN or infinity"):
        load_weights(model, tmp_path / "w.pth")


def test_a_mask_that_holds_infinity_in_the_model_too_is_sound(tmp_path: Path) -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))

    source = filled(nn.Sequential(nn.Linear(1, 1))), Masked()
    save_file(source[1].state_dict(), tmp_path / "w.safetensors")
    assert "mask" in load_weights(Masked(), tmp_path / "w.safetensors").matched
    wrong = source[1].state_dict() | {"mask": torch.full((3, 3), -math.inf)}
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="mask holds NaN or infinity"):
        load_weights(Masked(), tmp_path / "w.safetensors")


@pytest.mark.parametrize(("held", "wanted"), [(torch.float16, torch.float32), (torch.float64, torch.bfloat16)])
def test_values_are_cast_to_the_models_dtype(tmp_path: Path, held: torch.dtype, wanted: torch.dtype) -> None:
    weight = torch.randn(2, 3).to(held)
    save_file({"weight": weight, "bias": torch.zeros(2, dtype=held)}, tmp_path / "w.safetensors")
    model = nn.Linear(3, 2, dtype=wanted)
    load_weights(model, tmp_path / "w.safetensors")
    assert model.weight.dtype == wanted
    assert torch.equal(model.weight.detach(), weight.to(wanted))


def test_a_value_too_large_for_the_models_dtype_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.full((2, 3), 1e6), "bias": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"weight holds NaN or infinity as torch\.float16"):
        load_weights(nn.Linear(3, 2, dtype=torch.float16), tmp_path / "w.safetensors")


def test_tied_weights_are_loaded_once_and_not_called_missing(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.ModuleDict({"embedding": nn.Embedding(5, 3), "body": nn.Linear(3, 3), "out": nn.Linear(3, 5, bias=False)})
        model["out"].weight = model["embedding"].weight
        return model

    source = filled(tied()).state_dict()
    del source["out.weight"]
    save_file(source, tmp_path / "w.safetensors")
    model = tied()
    report = load_weights(model, tmp_path / "w.safetensors", min_match=1.0)
    assert report.missing == ()
    assert torch.equal(model["out"].weight.detach(), source["embedding.weight"])
    assert model["out"].weight is model["embedding"].weight


def test_tensors_of_other_layouts_and_models_without_values_are_left_out(tmp_path: Path) -> None:
    torch.save({"weight": torch.eye(3).to_sparse(), "bias": torch.ones(3)}, tmp_path / "w.pth")
    report = load_weights(nn.Linear(3, 3), tmp_path / "w.pth", min_match=0)
    assert report.left_out == {"weight": "not an ordinary dense tensor in the file"}
    torch.save(nn.Linear(3, 3).state_dict(), tmp_path / "w.pth")
    for model in (nn.Linear(3, 3, device="meta"), nn.Sequential(nn.LazyLinear(3))):
        with pytest.raises(InputError, match=r"match 0\.0%"):
            load_weights(model, tmp_path / "w.pth")
    assert (
        "not initialized" in load_weights(nn.Linear(3, 3, device="meta"), tmp_path / "w.pth", min_match=0).left_out["bias"]
    )


def test_frozen_and_not_contiguous_parameters_are_filled_in_place(tmp_path: Path) -> None:
    source = filled(net()).state_dict()
    save_file(source, tmp_path / "w.safetensors")
    model = net().to(memory_format=torch.channels_last).requires_grad_(False)
    weight = model[0].weight
    load_weights(model, tmp_path / "w.safetensors")
    assert model[0].weight is weight
    assert torch.equal(weight, source["0.weight"])
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.requires_grad


# another number of input channels


@pytest.mark.parametrize("held", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 7])
def test_the_response_to_a_grey_image_stays(held: int, wanted: int) -> None:
    weight, grey = torch.randn(6, held, 3, 3, dtype=torch.float64), torch.randn(2, 1, 5, 5, dtype=torch.float64)
    adapted = adapt_channels(weight, wanted)
    assert adapted.shape == (6, wanted, 3, 3)
    before = nn.functional.conv2d(grey.expand(-1, held, -1, -1), weight)
    after = nn.functional.conv2d(grey.expand(-1, wanted, -1, -1), adapted)
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_channels_are_dealt_out_in_turn() -> None:
    weight = torch.tensor([[1.0, 2.0, 4.0]])
    assert adapt_channels(weight, 2).tolist() == [[5.0, 2.0]]
    assert adapt_channels(weight, 4).tolist() == [[0.5, 2.0, 4.0, 0.5]]
    assert torch.equal(adapt_channels(weight, 3), weight)
    with pytest.raises(InputError, match="in_channels=0"):
        adapt_channels(weight, 0)


@pytest.mark.parametrize(("held", "wanted", "rule"), [
    (3, 1, "summed"),
    (3, 2, "summed in turn"),
    (1, 3, "repeated in turn and divided by the number of copies"),
])  # fmt: skip
def test_the_first_convolution_is_adapted_and_the_rule_named(tmp_path: Path, held: int, wanted: int, rule: str) -> None:
    source = filled(net(channels=held)).double()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = net(channels=wanted).double()
    report = load_weights(model, tmp_path / "w.safetensors", min_match=1.0)
    assert report.resized == {"0.weight": f"{held} -> {wanted} input channels, {rule}"}
    grey = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    one, other = (m.eval()(grey.expand(-1, c, -1, -1)) for m, c in ((source, held), (model, wanted)))
    torch.testing.assert_close(one, other)


def test_adapting_keeps_the_precision_of_the_file(tmp_path: Path) -> None:
    source = nn.Conv2d(3, 2, 1, dtype=torch.float64)
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = nn.Conv2d(1, 2, 1, dtype=torch.float64)
    load_weights(model, tmp_path / "w.safetensors")
    torch.testing.assert_close(model.weight, source.weight.sum(1, keepdim=True), rtol=1e-15, atol=1e-15)


def test_only_the_first_convolution_is_adapted(tmp_path: Path) -> None:
    def two(inner: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, inner, 1), nn.Conv2d(inner, 2, 1), nn.Flatten(), nn.Linear(2, 2))

    save_file(two(4).state_dict(), tmp_path / "w.safetensors")
    report = load_weights(two(6), tmp_path / "w.safetensors", min_match=0)
    assert report.resized == {}
    assert report.left_out["1.weight"] == "shape (2, 4, 1, 1) in the file, (2, 6, 1, 1) in the model"


def test_a_transposed_convolution_has_its_outputs_second_and_is_not_adapted(tmp_path: Path) -> None:
    save_file(nn.ConvTranspose2d(4, 3, 2, bias=False).state_dict(), tmp_path / "w.safetensors")
    report = load_weights(nn.ConvTranspose2d(4, 1, 2, bias=False), tmp_path / "w.safetensors", min_match=0)
    assert report.left_out == {"weight": "shape (4, 3, 2, 2) in the file, (4, 1, 2, 2) in the model"}
