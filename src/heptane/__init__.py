"""heptane: seven tricks that make a PyTorch model reach the same accuracy in a fraction of the time."""

from typing import Any as _Any

from heptane.base.errors import InputError, Interrupted
from heptane.base.version import __version__ as __version__
from heptane.core.cross_entropy import smooth_ctc_loss, soft_cross_entropy
from heptane.core.fit_options import Extras
from heptane.core.loop import Step
from heptane.core.losses import CrossEntropy
from heptane.core.precision.step import precision
from heptane.core.schedule import as_scheduler, join_schedules, scale_schedules
from heptane.data import Data, Reading, Text, load_data
from heptane.data.augment import (
    AugmentSequence,
    ColorJitter,
    CropFlip,
    RandomErasing,
    RandomResizedCrop,
    TrivialAugment,
    Warp,
)
from heptane.data.batches import epoch_order
from heptane.data.lengths import LengthBatches, pad_batch
from heptane.data.resize import ProgressiveResize
from heptane.fit import evaluate, fit, train
from heptane.pretrained.anatomy import Anatomy, anatomy
from heptane.pretrained.freezing import freeze, param_groups, swap_head, train_mode
from heptane.pretrained.load import load_weights
from heptane.race import RaceExtras, RaceResult, race
from heptane.session.finished.load_run import LoadedRun, load_run
from heptane.session.finished.predictions import Prediction
from heptane.session.result import Result
from heptane.tricks import Tricks
from heptane.tricks.cyclical import Cyclical, cosine_restarts, one_cycle, triangular
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.label_smoothing import LabelSmoothing, smooth_labels
from heptane.tricks.lr_scaling import LRScaling, scale_lr, warmup
from heptane.tricks.mixed_precision import MixedPrecision
from heptane.tricks.mixup import Mixup, mixup_batch
from heptane.tricks.transfer import Transfer

__all__ = [
    "Anatomy",
    "AugmentSequence",
    "ColorJitter",
    "CropFlip",
    "CrossEntropy",
    "Cyclical",
    "Data",
    "DataParallel",
    "Extras",
    "InputError",
    "Interrupted",
    "LRScaling",
    "LabelSmoothing",
    "LengthBatches",
    "LoadedRun",
    "MixedPrecision",
    "Mixup",
    "Prediction",
    "ProgressiveResize",
    "RaceExtras",
    "RaceResult",
    "RandomErasing",
    "RandomResizedCrop",
    "Reading",
    "Result",
    "Step",
    "Text",
    "Transfer",
    "Tricks",
    "TrivialAugment",
    "Warp",
    "anatomy",
    "as_scheduler",
    "cosine_restarts",
    "epoch_order",
    "evaluate",
    "fit",
    "freeze",
    "join_schedules",
    "load_data",
    "load_run",
    "load_weights",
    "mixup_batch",
    "one_cycle",
    "pad_batch",
    "param_groups",
    "precision",
    "race",
    "scale_lr",
    "scale_schedules",
    "smooth_ctc_loss",
    "smooth_labels",
    "soft_cross_entropy",
    "swap_head",
    "train",
    "train_mode",
    "triangular",
    "warmup",
]

_RENAMED = {
    "join": "join_schedules",
    "mix": "mixup_batch",
    "multiply": "scale_schedules",
    "order": "epoch_order",
    "pad": "pad_batch",
    "smooth": "smooth_labels",
}


def __getattr__(name: str) -> _Any:
    """A public name of an earlier release, with a warning."""
    if name not in _RENAMED:
        raise AttributeError(f"module 'heptane' has no attribute {name!r}")
    import warnings

    warnings.warn(f"heptane.{name} is now heptane.{_RENAMED[name]}", FutureWarning, stacklevel=2)
    return globals()[_RENAMED[name]]
