"""Build transformers models from a ``config.json`` alone, and translate weight names to those of the installed version."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from heptane.base.errors import InputError, did_you_mean, one_line
from heptane.base.lazy import torch
from heptane.pretrained.hubs import hf_hub, import_library, torchvision_remedy
from heptane.pretrained.weights.files import read_json
from heptane.pretrained.weights.names import printable

# What a config.json must not decide: where code comes from, and how weights are packed.
LEFT_OUT = re.compile(r"auto_map|quantization_config|.*_implementation(_internal)?|custom_pipelines")
LIMITS = {re.compile(r"num_labels|.*vocab_size"): 10_000_000, re.compile(r".*(layers|depths?|blocks|stages)"): 1_000}


def build(spec: str, input_shape: Sequence[int], num_classes: int) -> object:
    """A classifier with random weights, of the architecture in a ``config.json``, for this data.

    Args:
        spec: ``hf:NAME[@REVISION]`` or ``hf:FOLDER``. The config of an image model is adapted to this data's channels and
            size.
        input_shape: (channels, height, width), or another shape for text models.
        num_classes: number of outputs.

    Raises:
        InputError: no such model; a config that is damaged, of an unknown type, without a classifier, or too large.
    """
    label = f"model={spec!r}"
    transformers = import_library("transformers", label, "hf")
    folder = hf_hub.find(spec, label, hf_hub.CONFIG)
    config = read_config(folder, label)
    pictures = type(config) in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    family = transformers.AutoModelForImageClassification if pictures else transformers.AutoModelForSequenceClassification
    if not pictures and type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(f"{label}: transformers has no classifier of images or text of model_type {config.model_type!r}")
    if pictures != (len(input_shape) == 3):
        wanted = "images of (channels, height, width)" if pictures else "text as token numbers"
        raise InputError(f"{label} takes {wanted}, got samples of shape {tuple(input_shape)}")
    if pictures:
        _fit_images(config, input_shape, label)
    with _one_line_errors(label):
        config.num_labels = num_classes
        check_size(lambda: family.from_config(config, trust_remote_code=False), label)
        return family.from_config(config, trust_remote_code=False)


def read_config(folder: Path, label: str) -> Any:
    """The configuration in a folder, without entries that could name code.

    Raises:
        InputError: missing, damaged, unknown to transformers, or with absurd numbers.
    """
    transformers = import_library("transformers", label, "hf")
    file = folder / "config.json" if os.path.isdir(folder) else folder
    if not os.path.isfile(file):
        raise InputError(f"{label}: no config.json in it; give a Hugging Face model, or its folder")
    content = _without_code(read_json(file, label))
    kind = content.get("model_type")
    if kind is None and "architecture" in content:
        raise InputError(f"{label} is a model of timm; give timm:{printable(str(content['architecture']))}")
    known = transformers.CONFIG_MAPPING
    if not isinstance(kind, str) or kind not in known:
        offer = did_you_mean(kind, known) if isinstance(kind, str) and len(kind) < 100 else ""
        what = f"model_type {printable(repr(kind))} in config.json is not known to transformers {transformers.__version__}"
        raise InputError(f"{label}: {what}{offer}")
    _check_numbers(content, label)
    with _one_line_errors(label):
        return known[kind].from_dict(content)


def check_size(make: Callable[[], torch.nn.Module], label: str) -> None:
    """Refuse a model that exceeds this machine's memory, from a copy on the meta device."""
    with torch.device("meta"):
        meta_copy = make()
    needed = sum(tensor.numel() * tensor.element_size() for tensor in meta_copy.state_dict().values())
    if hasattr(os, "sysconf") and needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        held = f"{needed / 2**30:,.0f} GiB; this machine has {memory / 2**30:,.0f}"
        raise InputError(f"{label}: its config.json asks for a model of {held}; check config.json")


def translate(model: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path, label: str) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors under the names of the model's class, which change between versions of transformers.

    transformers itself loads them into a model of the checkpoint's own sizes. Names stay unchanged if they already agree, if
    the model is not a transformers model, or if config.json names another architecture.

    Raises:
        InputError: a damaged config.json, or one that does not match the tensors.
    """
    base = getattr(sys.modules.get("transformers"), "PreTrainedModel", None)
    inner = next((m for m in model.modules() if base and isinstance(m, base)), None)
    if inner is None or not os.path.isfile(folder / "config.json"):
        return tensors
    known, prefix = inner.state_dict().keys(), f"{inner.base_model_prefix}."
    if any({change(name) for name in tensors} <= known for change in (str, f"{prefix}{{}}".format)):
        return tensors  # names of a base model only lack the prefix, which pair_names adds and reports
    config = read_config(folder, label)
    if config.model_type != inner.config.model_type:
        return tensors
    kind: Any = type(inner)
    with _one_line_errors(label), torch.random.fork_rng(devices=[]):
        check_size(lambda: kind(config), label)
        donor, done = kind.from_pretrained(None, config=config, state_dict=dict(tensors), output_loading_info=True)
    named = {name: tensor for name, tensor in donor.state_dict().items() if name not in done["missing_keys"]}
    return named | {name: tensors[name] for name in done["unexpected_keys"] if name in tensors}


def _fit_images(config: Any, input_shape: Sequence[int], label: str) -> None:
    """Adapt the configuration of an image model to these images."""
    channels, height, width = input_shape
    part = getattr(config, "vision_config", config)
    if hasattr(part, "num_channels"):
        part.num_channels = channels
    elif channels != 3:
        raise InputError(f"{label} takes images of 3 channels, got {channels}")
    patch = getattr(part, "patch_size", 1)
    if isinstance(patch, int) and min(height, width) < patch:
        raise InputError(f"{label} cuts images into patches of {patch}x{patch}, and these are {height}x{width}")
    if hasattr(part, "image_size"):
        part.image_size = height if height == width else (height, width)


@contextmanager
def _one_line_errors(label: str) -> Iterator[None]:
    """Silence transformers, and turn its errors into an :class:`InputError` of one line."""
    logging: Any = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        first: BaseException = error
        while cause := first.__cause__ or first.__context__:
            first = cause
        what = f"{label}: transformers could not build it from its config.json: {one_line(first)}"
        raise InputError("; ".join(filter(None, [what, torchvision_remedy(first)]))) from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _without_code(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_code(value) for key, value in content.items() if not LEFT_OUT.fullmatch(key)}
    return [_without_code(value) for value in content] if isinstance(content, list) else content


def _check_numbers(content: Any, label: str, name: str = "") -> None:
    """Refuse numbers that would exhaust memory or time before the model can be checked."""
    if isinstance(content, dict):
        for key, value in content.items():
            _check_numbers(value, label, key)
    elif isinstance(content, list):
        for value in content:
            _check_numbers(value, label, name)
    elif isinstance(content, (int, float)):
        for pattern, limit in LIMITS.items():
            if pattern.fullmatch(name) and content > limit:
                raise InputError(
                    f"{label}: config.json has {name}={printable(str(content))}, above {limit:,}; check config.json"
                )
