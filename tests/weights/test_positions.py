"""Position embeddings of another size: against timm's resampling and results worked out by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from heptane import InputError, load_weights
from heptane.pretrained.weights import adapt_positions


class Net(nn.Module):
    """A model whose positions are a parameter of shape (1, N, D), or the table of an embedding, (N, D)."""

    def __init__(self, num_positions: int, name: str = "pos_embed", table: bool = False) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        made = nn.Embedding(num_positions, 4) if table else nn.Parameter(torch.randn(1, num_positions, 4))
        setattr(self, name, made)
        self.register_buffer("position_ids", torch.arange(num_positions)[None])
        self.head = nn.Linear(4, 2)


def loaded(tmp_path: Path, source: nn.Module, model: nn.Module) -> dict[str, str]:
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors", min_match=0)
    return {**report.resized, **report.left_out}


@pytest.mark.parametrize("prefix", [0, 1, 2])
@pytest.mark.parametrize(("held", "wanted"), [(14, 8), (3, 7), (1, 4)])
def test_a_grid_is_resampled_as_timm_does(prefix: int, held: int, wanted: int) -> None:
    layers = pytest.importorskip("timm.layers", exc_type=ImportError)
    weight = torch.randn(1, prefix + held**2, 6)
    found, _ = adapt_positions(weight, prefix + wanted**2)
    expected = layers.resample_abs_pos_embed(weight, [wanted, wanted], num_prefix_tokens=prefix)
    assert torch.equal(found, expected)


def test_a_grid_keeps_a_plane_and_its_prefix_tokens() -> None:
    """Bicubic interpolation is exact on a linear function, away from the edges: pixel centres are at (i + 0.5) / side."""
    old, new = ((torch.arange(side, dtype=torch.float64) + 0.5) / side for side in (8, 16))
    plane = (old[:, None] * 3 + old[None]).reshape(1, 64, 1)
    found, rule = adapt_positions(torch.cat([torch.full((1, 1, 1), 9.0, dtype=torch.float64), plane], dim=1), 257)
    expected = new[:, None] * 3 + new[None]
    torch.testing.assert_close(found[0, 1:].view(16, 16)[4:-4, 4:-4], expected[4:-4, 4:-4], rtol=0, atol=1e-12)
    assert found[0, 0].item() == 9
    assert rule == "65 -> 257 positions: grid 8x8 -> 16x16, bicubic; 1 prefix token kept"


def test_the_rule_names_the_prefix_tokens() -> None:
    assert adapt_positions(torch.zeros(1, 196, 2), 64)[1] == "196 -> 64 positions: grid 14x14 -> 8x8, bicubic"
    assert adapt_positions(torch.zeros(1, 198, 2), 66)[1].endswith("; 2 prefix tokens kept")


@pytest.mark.parametrize("shape", [(3, 1), (1, 3, 1)])
def test_a_sequence_is_cut_or_stretched_between_its_ends(shape: tuple[int, ...]) -> None:
    weight = torch.tensor([1.0, 2.0, 6.0]).view(shape)
    longer, rule = adapt_positions(weight, 5)
    assert longer.shape == (*shape[:-2], 5, 1)
    torch.testing.assert_close(longer.flatten(), torch.tensor([1.0, 1.5, 2.0, 4.0, 6.0]))
    assert rule == "3 -> 5 positions: linear along the sequence"
    shorter, rule = adapt_positions(weight, 2)
    assert shorter.flatten().tolist() == [1, 2]
    assert rule == "3 -> 2 positions: the first 2 taken"


def test_a_table_whose_sizes_are_squares_is_a_sequence_all_the_same() -> None:
    assert adapt_positions(torch.randn(16, 2), 4)[1] == "16 -> 4 positions: the first 4 taken"


def test_half_precision_is_computed_in_single(tmp_path: Path) -> None:
    source, model = Net(17).half(), Net(5).half()
    loaded(tmp_path, source, model)
    expected = adapt_positions(source.pos_embed.detach().float(), 5)[0].half()
    assert torch.equal(model.pos_embed.detach(), expected)


@pytest.mark.parametrize("name", ["pos_embed", "position_embeddings", "positional_embedding", "absolute_pos_embed"])
def test_a_parameter_named_for_positions_is_adapted(tmp_path: Path, name: str) -> None:
    model = Net(5, name)
    rule = loaded(tmp_path, Net(10, name), model)
    assert rule == {
        name: "10 -> 5 positions: grid 3x3 -> 2x2, bicubic; 1 prefix token kept",
        "position_ids": "shape (1, 10) in the file, (1, 5) in the model",
    }


@pytest.mark.parametrize("name", ["position_embeddings", "wpe", "embed_positions"])
def test_the_table_of_an_embedding_named_for_positions_is_adapted(tmp_path: Path, name: str) -> None:
    source, model = Net(12, name, table=True), Net(8, name, table=True)
    assert loaded(tmp_path, source, model)[f"{name}.weight"] == "12 -> 8 positions: the first 8 taken"
    assert torch.equal(model.get_parameter(f"{name}.weight"), source.get_parameter(f"{name}.weight")[:8])


@pytest.mark.parametrize("name", ["tokens", "relative_position_bias_table", "rel_pos_h", "composed", "position_ids_table"])
def test_what_is_not_a_table_of_absolute_positions_is_left_out(tmp_path: Path, name: str) -> None:
    model = Net(5, name, table=True)
    before = model.get_parameter(f"{name}.weight").detach().clone()
    found = loaded(tmp_path, Net(10, name, table=True), model)
    assert found[f"{name}.weight"] == "shape (10, 4) in the file, (5, 4) in the model"
    assert torch.equal(model.get_parameter(f"{name}.weight"), before)


def test_a_linear_layer_named_for_positions_is_no_table(tmp_path: Path) -> None:
    source, model = (nn.ModuleDict({"body": nn.Linear(4, 4), "pos_proj": nn.Linear(4, n)}) for n in (10, 5))
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert "pos_proj.weight" in load_weights(model, tmp_path / "w.safetensors", min_match=0).left_out


def test_another_width_of_the_embeddings_is_left_out(tmp_path: Path) -> None:
    source, model = Net(5), Net(10)
    model.pos_embed = nn.Parameter(torch.zeros(1, 10, 6))
    assert loaded(tmp_path, source, model)["pos_embed"] == "shape (1, 5, 4) in the file, (1, 10, 6) in the model"


def test_positions_of_the_same_number_are_untouched(tmp_path: Path) -> None:
    source, model = Net(10), Net(10)
    assert loaded(tmp_path, source, model) == {}
    assert torch.equal(model.pos_embed, source.pos_embed)


@pytest.mark.parametrize(("name", "shape"), [("pos_embed", (1, 10**12 + 1, 4)), ("pos_embed", (1, 1, 4))])
def test_one_value_that_claims_to_be_many_costs_no_memory(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    tensors: dict[str, torch.Tensor] = dict(Net(5).state_dict())
    torch.save(tensors | {name: torch.zeros(1).expand(shape)}, tmp_path / "w.pth")
    report = load_weights(Net(5), tmp_path / "w.pth")
    assert report.left_out == {name: f"shape {shape} in the file, (1, 5, 4) in the model"}


def test_a_number_of_positions_out_of_range_is_refused() -> None:
    with pytest.raises(InputError, match="num_positions=0"):
        adapt_positions(torch.zeros(3, 2), 0)
