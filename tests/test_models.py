"""Models by name: the built-in ones with their sizes, timm's, and user-defined factories with their errors."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from heptane import InputError
from heptane.pretrained.models import Residual, build, convolve, mlp, resnet, resnet_wide


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module, image: torch.Tensor) -> int:
    """Counted by hooks, per image: each output of a convolution or linear layer costs one weight's worth of products."""
    counted = []

    def count(layer: Any, inputs: Any, output: torch.Tensor) -> None:
        spatial = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        counted.append(layer.weight.numel() * spatial)

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    model(image)
    return sum(counted)


# the built-in ones


def test_resnet_has_the_size_and_cost_that_its_docstring_states() -> None:
    model = resnet(10)
    layers = ((1, 16), (16, 32), (32, 32), (32, 32), (32, 56), (56, 56), (56, 56))
    assert size(model) == sum(9 * num_in * num_out + 2 * num_out for num_in, num_out in layers) + 56 * 10 + 10 == 96_890
    assert round(multiply_adds(model, torch.zeros(1, 1, 28, 28)) / 1e6, 1) == 13.3


def test_resnet_wide_has_the_size_and_cost_that_its_docstring_states() -> None:
    model = resnet_wide(10)
    assert round(size(model) / 1000) == 385
    assert round(multiply_adds(model, torch.zeros(1, 1, 28, 28)) / 1e6) == 53


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (2, 28, 28)])
def test_resnet_takes_images_of_any_size_and_every_parameter_gets_a_gradient(shape: tuple[int, int, int]) -> None:
    model = resnet(7, shape[0], 4)
    output = model(torch.randn(2, *shape))
    assert output.shape == (2, 7)
    output.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_a_block_is_its_input_and_two_convolutions() -> None:
    block, x = Residual(2).eval(), torch.randn(1, 2, 5, 5)
    scale = (1 + 1e-5) ** -0.5  # BatchNorm in eval mode, fresh: mean 0, variance 1

    def f(layers: nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
        return (nn.functional.conv2d(inputs, layers.conv.weight, padding=1) * scale).relu()

    torch.testing.assert_close(block(x), x + f(block.second, f(block.first, x)))


def test_halving_keeps_the_largest_of_each_four_pixels() -> None:
    layers, x = convolve(2, 3, halve=True).eval(), torch.randn(1, 2, 6, 6)
    whole = nn.functional.conv2d(x, layers.conv.weight, padding=1) * (1 + 1e-5) ** -0.5
    expected = whole.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).amax(4).relu()
    torch.testing.assert_close(layers(x), expected)


def test_the_same_seed_builds_the_same_model() -> None:
    models = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        models.append(build("resnet", input_shape=(1, 8, 8), num_classes=3).state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert not torch.equal(models[0]["stem.conv.weight"], models[2]["stem.conv.weight"])


def test_mlp_flattens_any_shape() -> None:
    model = mlp(3, (2, 3, 4), hidden=5)
    assert size(model) == 24 * 5 + 5 + 5 * 3 + 3
    assert model(torch.zeros(7, 2, 3, 4)).shape == (7, 3)
    assert mlp(1, (6,))(torch.zeros(1, 6)).shape == (1, 1)


@pytest.mark.parametrize(("spec", "kind"), [("resnet", 96_890), ("resnet-wide", 385_002), ("mlp", 784 * 64 + 64 + 650)])
def test_built_in_names_build_their_models(spec: str, kind: int) -> None:
    assert size(build(spec, input_shape=(1, 28, 28), num_classes=10)) == kind


@pytest.mark.parametrize(
    ("arguments", "named"),
    [({"num_classes": 0}, "num_classes=0"), ({"in_channels": 0}, "in_channels=0"), ({"width": 1.5}, "width=1.5")],
)
def test_numbers_out_of_range_are_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        resnet(**arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((0, (4,)), "num_classes=0"),
        ((2, (4,), 0), "hidden=0"),
        ((2, (4, 0)), "input_shape=0"),
        ((2, ()), r"input_shape=\(\)"),
    ],
)
def test_an_mlp_that_cannot_be_is_refused(arguments: tuple[Any, ...], named: str) -> None:
    with pytest.raises(InputError, match=named):
        mlp(*arguments)


@pytest.mark.parametrize("shape", [(64,), (28, 28), (1, 7, 28), (1, 1, 8, 8)])
def test_a_residual_network_refuses_what_is_no_image(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"model='resnet-wide' takes images .*, at least 8x8, got .*; use mlp"):
        build("resnet-wide", input_shape=shape, num_classes=2)


@pytest.mark.parametrize(("spec", "offer"), [("resnt", r" \(did you mean resnet\?\)"), ("", ""), ("zzz", "")])
def test_an_unknown_name_is_refused_with_the_nearest(spec: str, offer: str) -> None:
    with pytest.raises(
        InputError,
        match=rf"^model='{spec}' is not known{offer}: expected one of resnet, resnet-wide, mlp, tabular, text, "
        "efficientnet-lite0, minilm, timm",
    ):
        build(spec, input_shape=(1, 28, 28), num_classes=2)


def test_a_bad_number_of_classes_is_refused_whatever_the_model() -> None:
    for spec in ("resnet", "timm:resnet18", "a.b:c"):
        with pytest.raises(InputError, match="num_classes=0"):
            build(spec, input_shape=(1, 28, 28), num_classes=0)


# somebody's factory


FACTORIES = """
import functools
import sys
from torch import nn

def plain(): return nn.Linear(4, 2)
def classes(num_classes): return nn.Linear(4, num_classes)
def both(num_classes, *, input_shape): return nn.Linear(input_shape[0], num_classes)
def renamed(features=4, num_classes=3): return nn.Linear(features, num_classes)
def anything(**options): return nn.Linear(options["input_shape"][0], options["num_classes"])
def positional(num_classes=9, /): return nn.Linear(4, num_classes)
class Net(nn.Linear):
    def __init__(self, num_classes): super().__init__(4, num_classes)
class Outer:
    @staticmethod
    def make(num_classes): return nn.Linear(4, num_classes)
partial = functools.partial(renamed, 6)
def passes_on(**options): return classes(**options)
def passes_nothing_on(**options): return plain(**options)

number = 5
model = nn.Linear(4, 2)
def wrong(): return "a model"
def raises(): raise KeyError("depth")
def needs(depth): return nn.Linear(4, depth)
def inner_type_error(num_classes): return plain(num_classes=num_classes)
def leaves(): sys.exit(3)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current directory, which is not on the path."""
    (tmp_path / "own_models.py").write_text(FACTORIES)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return "own_models"


@pytest.mark.parametrize(
    ("factory", "shape"),
    [
        ("plain", (2, 4)),
        ("classes", (5, 4)),
        ("both", (5, 6)),
        ("renamed", (5, 4)),
        ("anything", (5, 6)),
        ("positional", (9, 4)),
        ("Net", (5, 4)),
        ("Outer.make", (5, 4)),
        ("partial", (5, 6)),
        ("passes_on", (5, 4)),
        ("passes_nothing_on", (2, 4)),
    ],
)
def test_a_factory_gets_what_it_takes_by_name(own: str, factory: str, shape: tuple[int, int]) -> None:
    model = build(f"{own}:{factory}", input_shape=(6,), num_classes=5)
    assert isinstance(model, nn.Linear)
    assert tuple(model.weight.shape) == shape


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("clases", r"'own_models' has no 'clases' \(did you mean classes\?\)"),
        ("Outer.build", r"has no 'Outer\.build'"),
        ("number", r"'number' is a int; expected a function or a class"),
        ("model", r"'model' is a Linear; expected a function or a class"),
        ("wrong", r"returned a str; expected a torch\.nn\.Module"),
        ("raises", r"the factory failed with KeyError: 'depth'"),
        ("needs", r"the factory failed with TypeError: .*missing 1 required positional argument: 'depth'"),
        ("inner_type_error", r"the factory failed with TypeError: .*unexpected keyword argument 'num_classes'"),
        ("leaves", r"the factory failed with SystemExit: 3"),
    ],
)
def test_a_factory_that_is_not_there_or_fails_is_one_clear_line(own: str, attribute: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build(f"{own}:{attribute}", input_shape=(6,), num_classes=5)
    assert str(caught.value).startswith(f"model='{own}:{attribute}'")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [":", "models:", ":build"])
def test_half_a_spec_is_refused(spec: str) -> None:
    with pytest.raises(InputError, match=r"expected package\.module:factory, such as my_models:build"):
        build(spec, input_shape=(6,), num_classes=5)


def test_a_module_that_does_not_import_is_refused(own: str) -> None:
    with pytest.raises(
        InputError, match=r"cannot import 'no_such_module' \(looked in the current directory and sys\.path\)"
    ):
        build("no_such_module:build", input_shape=(6,), num_classes=5)
    for text, reason in (
        ("import sys; sys.exit('bye')", "bye"),
        ("1 +", "invalid syntax"),
        ("raise ValueError()", "ValueError"),
    ):
        Path("broken_models.py").write_text(text)
        with pytest.raises(InputError, match=rf"cannot import 'broken_models': .*{reason}"):
            build("broken_models:build", input_shape=(6,), num_classes=5)


def test_a_builtin_without_a_signature_is_called_with_nothing() -> None:
    with pytest.raises(InputError, match=r"model='builtins:dict' returned a dict; expected a torch\.nn\.Module"):
        build("builtins:dict", input_shape=(6,), num_classes=5)


# timm


def in_fresh_python(code: str) -> str:
    """What ``code`` prints: timm's import leaves marks, so it does not belong in this process."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # how Python says that a module cannot be found
    with pytest.raises(InputError, match=r'^model=\'timm:resnet18\' needs timm: pip install "heptane\[timm\]"$'):
        build("timm:resnet18", input_shape=(3, 32, 32), num_classes=2)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The file of a package that is imported as timm in this test."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "timm").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "timm" / "__init__.py"
    sys.modules.pop("timm", None)


@pytest.mark.parametrize(
    ("failure", "remedy"),
    [
        (
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "install the torchvision that was built for this",
        ),
        ("import a_part_that_is_missing", "fix its installation"),
    ],
)
def test_timm_that_does_not_import_gives_the_cause_and_the_remedy_each_time(
    stand_in: Path, failure: str, remedy: str
) -> None:
    stand_in.write_text(failure)
    for _ in range(2):
        with pytest.raises(InputError, match=remedy) as caught:
            build("timm:resnet18", input_shape=(3, 32, 32), num_classes=2)
        assert str(caught.value).startswith("model='timm:resnet18': timm is installed but fails to import (")


def test_timm_is_asked_for_no_weights_and_for_the_images_channels(stand_in: Path) -> None:
    stand_in.write_text(
        "from torch import nn\n"
        "def list_models(): return ['net']\n"
        "def is_model(name): return name in list_models()\n"
        "def get_pretrained_cfg(name): return None\n"
        "def create_model(name, *, pretrained, in_chans, num_classes):\n"
        "    if num_classes == 3: raise RuntimeError('no three')\n"
        "    return 'net' if pretrained or num_classes == 4 else nn.Conv2d(in_chans, num_classes, 1)\n"
    )
    model = build("timm:net", input_shape=(2, 8, 8), num_classes=5)
    assert tuple(model.get_parameter("weight").shape) == (5, 2, 1, 1)
    with pytest.raises(InputError, match=r"model='timm:nte': timm has no such model \(did you mean net\?\)"):
        build("timm:nte", input_shape=(2, 8, 8), num_classes=5)
    with pytest.raises(InputError, match=r"takes images of \(channels, height, width\), got \(64,\)"):
        build("timm:net", input_shape=(64,), num_classes=5)
    with pytest.raises(InputError, match="timm could not build it: no three"):
        build("timm:net", input_shape=(2, 8, 8), num_classes=3)
    with pytest.raises(InputError, match="model='timm:net' returned a str"):
        build("timm:net", input_shape=(2, 8, 8), num_classes=4)


REAL_TIMM = """
    import importlib.util, pathlib, re, torch
    try:
        import torchvision
    except RuntimeError:  # its binary is of another PyTorch; timm needs only the names of its operators
        import sys
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        source = pathlib.Path(importlib.util.find_spec("torchvision").origin).with_name("_meta_registrations.py").read_text()
        library = torch.library.Library("torchvision", "DEF")
        for name in set(re.findall(r'"torchvision::(\\w+)"|register_meta\\("(\\w+)"', source)):
            library.define("".join(name) + "(Tensor x) -> Tensor")
    from heptane import InputError
    from heptane.pretrained.models import build
    model = build("timm:resnet10t", input_shape=(2, 32, 32), num_classes=5)
    print(tuple(model(torch.zeros(2, 2, 32, 32)).shape))
    for spec, shape in (("timm:resnet10", (2, 32, 32)), ("timm:resnet10t", (64,)), ("timm:resnet10t", (-1, 8, 8))):
        try:
            build(spec, input_shape=shape, num_classes=5)
        except InputError as error:
            print(error)
"""


@pytest.mark.skipif(not importlib.util.find_spec("timm"), reason="timm is an extra, and is not installed here")
def test_a_model_of_timm_has_the_images_channels_and_the_classes_and_errors_are_clear() -> None:
    shape, unknown, flat, unbuilt = in_fresh_python(REAL_TIMM).splitlines()
    assert shape == "(2, 5)"
    assert unknown.startswith("model='timm:resnet10': timm has no such model (did you mean ")
    assert flat == "model='timm:resnet10t' takes images of (channels, height, width), got (64,)"
    assert unbuilt.startswith("model='timm:resnet10t': timm could not build it: ")
