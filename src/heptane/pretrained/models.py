"""Models by name: small built-in ones, and those of others as ``timm:NAME``, ``hf:NAME`` or ``package.module:factory``.

*Source*: He et al. 2016, arXiv:1512.03385 (residual blocks); Page 2018, "How to train your ResNet" (a shallow network that
pools after a convolution instead of using a stride).
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from heptane.base.errors import InputError, check_range, did_you_mean, one_line
from heptane.base.progress import EVERY_SECONDS, working
from heptane.pretrained.hubs import find_hub
from heptane.pretrained.text_model import TextNet

BUILT_IN = ("resnet", "resnet-wide", "mlp", "tabular", "text")
PRETRAINED = {"efficientnet-lite0": "efficientnet_hub", "minilm": "minilm_hub"}


class Residual(nn.Module):
    """A residual block: ``x + f(f(x))``, with f of :func:`convolve`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = convolve(channels, channels)
        self.second = convolve(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(self.first(x))
        return out


def convolve(num_in: int, num_out: int, *, halve: bool = False) -> nn.Sequential:
    """A 3x3 convolution, 2x2 max pooling if ``halve``, BatchNorm and ReLU."""
    layers = OrderedDict[str, nn.Module](conv=nn.Conv2d(num_in, num_out, 3, 1, 1, bias=False))
    if halve:
        layers["pool"] = nn.MaxPool2d(2)
    layers |= {"norm": nn.BatchNorm2d(num_out), "relu": nn.ReLU()}
    return nn.Sequential(layers)


def resnet(num_classes: int = 10, in_channels: int = 1, width: int = 16) -> nn.Sequential:
    """A small, fast residual network: a stem; twice, a halving of the image and a residual block; global average pooling; a
    head.

    With ``width`` 16 and one input channel it has 97 thousand parameters and needs 13.3 million multiply-adds for a 28x28
    image. It has w, 2w and 3.5w channels at full, half and quarter size.

    Args:
        num_classes: number of outputs, 1 or more.
        in_channels: channels of the images, 1 or more; any size from 8x8.
        width: channels of the stem, 2 or more; multiples of 16 suit 16-bit arithmetic.

    Returns:
        (batch, in_channels, height, width) -> (batch, num_classes).

    Raises:
        InputError: a number out of range.

    Example:
        >>> import torch
        >>> resnet(10)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source: Page 2018, "How to train your ResNet"; He et al. 2016, arXiv:1512.03385.
    """
    for name, value, least in (("num_classes", num_classes, 1), ("in_channels", in_channels, 1), ("width", width, 2)):
        check_range(name, value, least, whole=True)
    middle, last = 2 * width, 7 * width // 2
    return _sequence(
        stem=convolve(in_channels, width),
        down1=convolve(width, middle, halve=True),
        block1=Residual(middle),
        down2=convolve(middle, last, halve=True),
        block2=Residual(last),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        head=nn.Linear(last, num_classes),
    )


def resnet_wide(num_classes: int = 10, in_channels: int = 1) -> nn.Sequential:
    """:func:`resnet` at twice the width: 385 thousand parameters, 53 million multiply-adds for a 28x28 image.

    Example:
        >>> resnet_wide(10).head.in_features
        112
    """
    return resnet(num_classes, in_channels, 32)


def mlp(num_classes: int, input_shape: Sequence[int], hidden: int = 64) -> nn.Sequential:
    """A network with one hidden layer and ReLU, on flattened inputs.

    Args:
        num_classes: number of outputs, 1 or more.
        input_shape: shape of one sample, such as (1, 28, 28).
        hidden: units of the hidden layer.

    Returns:
        (batch, *input_shape) -> (batch, num_classes).

    Raises:
        InputError: a number out of range.

    Example:
        >>> import torch
        >>> mlp(10, (1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    check_range("num_classes", num_classes, 1, whole=True)
    check_range("hidden", hidden, 1, whole=True)
    if not input_shape:
        raise InputError("input_shape=(): expected the shape of a sample, such as (1,) or (1, 28, 28)")
    for size in input_shape:
        check_range("input_shape", size, 1, whole=True)
    inner = nn.Linear(prod(input_shape), hidden)
    return _sequence(flatten=nn.Flatten(), hidden=inner, relu=nn.ReLU(), head=nn.Linear(hidden, num_classes))


def tabular(num_classes: int, input_shape: Sequence[int], hidden: int = 128, dropout: float = 0.1) -> nn.Sequential:
    """A network for tables with standardized columns: two hidden layers with ReLU and dropout.

    Args:
        num_classes: number of outputs, 1 or more.
        input_shape: shape of one sample, such as (30,).
        hidden: units of each hidden layer.
        dropout: dropout probability, in [0, 1).

    Returns:
        (batch, *input_shape) -> (batch, num_classes).

    Raises:
        InputError: a number out of range.

    Example:
        >>> import torch
        >>> tabular(2, (30,))(torch.zeros(4, 30)).shape
        torch.Size([4, 2])
    """
    check_range("dropout", dropout, 0, 1, high_open=True)
    flatten, first, relu, head = mlp(num_classes, input_shape, hidden).children()
    return _sequence(
        flatten=flatten,
        hidden1=first,
        relu1=relu,
        dropout1=nn.Dropout(dropout),
        hidden2=nn.Linear(hidden, hidden),
        relu2=nn.ReLU(),
        dropout2=nn.Dropout(dropout),
        head=head,
    )


@working("building the model", after=EVERY_SECONDS)
def build(spec: str, *, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    """Build a model by name.

    Args:
        spec: ``resnet``, ``resnet-wide``, ``mlp``, ``tabular``, ``text``, ``efficientnet-lite0``, ``minilm``,
            ``timm:NAME``, ``hf:NAME[@REVISION]`` or ``hf:FOLDER`` (a classifier of transformers, from its config.json), or
            ``package.module:factory``, also from the current directory. A factory is called with ``num_classes`` and
            ``input_shape`` if it takes them.
        input_shape: shape of one sample: (channels, height, width) for images, (tokens,) for text.
        num_classes: number of outputs.

    Returns:
        A new model with random weights from PyTorch's global generator.

    Raises:
        InputError: an unknown name (the nearest is suggested); timm or transformers is missing; a config.json that cannot be
            built; a factory that is missing, raises, or returns something else than a module.

    Example:
        >>> type(build("resnet", input_shape=(1, 28, 28), num_classes=10)).__name__
        'Sequential'
        >>> build("resnt", input_shape=(1, 28, 28), num_classes=10)
        Traceback (most recent call last):
        heptane.base.errors.InputError: model='resnt' is not known (did you mean resnet?): expected one of resnet, \
resnet-wide, mlp, tabular, text, efficientnet-lite0, minilm, timm:NAME, hf:NAME, package.module:factory
    """
    check_range("num_classes", num_classes, 1, whole=True)
    if (hub := find_hub(spec)) is not None:
        return _checked(spec, hub.build(spec, input_shape, num_classes))
    if spec in PRETRAINED:
        module = importlib.import_module(f"heptane.pretrained.hubs.{PRETRAINED[spec]}")
        made: nn.Module = module.build(input_shape, num_classes)
        return made
    if ":" in spec:
        return _from_factory(spec, input_shape, num_classes)
    if spec in ("mlp", "tabular"):
        return (mlp if spec == "mlp" else tabular)(num_classes, input_shape)
    if spec == "text":
        return TextNet(num_classes)
    check_known(spec)
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        shape = tuple(input_shape)
        raise InputError(f"model={spec!r} takes images of (channels, height, width), at least 8x8, got {shape}; use mlp")
    return (resnet if spec == "resnet" else resnet_wide)(num_classes, input_shape[0])


def check_known(spec: str) -> None:
    """Refuse a name that :func:`build` does not know; names with a colon are not looked up."""
    kinds = (*BUILT_IN, *PRETRAINED, "timm:NAME", "hf:NAME", "package.module:factory")
    if ":" not in spec and spec not in kinds:
        raise InputError(f"model={spec!r} is not known{did_you_mean(spec, kinds)}: expected one of {', '.join(kinds)}")


def _sequence(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _from_factory(spec: str, input_shape: Sequence[int], num_classes: int) -> nn.Module:
    where, _, attribute = spec.partition(":")
    factory = _find_factory(spec, where, attribute)
    offered: dict[str, Any] = {"num_classes": num_classes, "input_shape": tuple(input_shape)}
    try:
        return _checked(spec, _call(factory, offered))
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"model={spec!r}: the factory failed with {type(error).__name__}: {one_line(error)}") from error


def _find_factory(spec: str, where: str, attribute: str) -> Callable[..., object]:
    if not where or not attribute:
        raise InputError(f"model={spec!r}: expected package.module:factory, such as my_models:build")
    if not any(os.path.abspath(folder) == os.getcwd() for folder in sys.path):
        sys.path.insert(0, os.getcwd())  # permanently: the factory may import its neighbours later
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(where)
    except (Exception, SystemExit) as error:
        hint = " (looked in the current directory and sys.path)" if isinstance(error, ModuleNotFoundError) else ""
        raise InputError(f"model={spec!r}: cannot import {where!r}{hint}: {one_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"model={spec!r}: {where!r} has no {attribute!r}{did_you_mean(attribute, dir(found))}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        raise InputError(f"model={spec!r}: {attribute!r} is a {type(found).__name__}; expected a function or a class")
    made: Callable[..., object] = found
    return made


def _call(factory: Callable[..., object], offered: dict[str, Any]) -> object:
    """Call a factory with those of the offered arguments that it takes by name."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some built-in callables have no signature
        return factory()
    by_name = {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    taken = {name: value for name, value in offered.items() if anything or name in by_name}
    while True:
        try:
            return factory(**taken)
        except TypeError as error:  # **kwargs may be passed on to something that does not take all of them
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if not refused or refused[1] in by_name or taken.pop(refused[1], None) is None:
                raise


def _checked(spec: str, made: object) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise InputError(f"model={spec!r} returned a {type(made).__name__}; expected a torch.nn.Module")
    return made
