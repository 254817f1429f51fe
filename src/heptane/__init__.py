"""heptane: seven tricks that make a PyTorch model reach the same accuracy in a fraction of the time."""

from heptane.criterion import CrossEntropy
from heptane.data import Data, load_data
from heptane.data.augment import CropFlip
from heptane.data.batches import order
from heptane.data.lengths import LengthBatches, pad
from heptane.data.resize import ProgressiveResize
from heptane.errors import InputError, Interrupted
from heptane.fit import evaluate, fit, train
from heptane.load_run import LoadedRun, load_run
from heptane.loop import Step
from heptane.predictions import Prediction
from heptane.race import RaceResult, race
from heptane.result import Result
from heptane.schedule import as_scheduler, join, multiply
from heptane.transfer.anatomy import Anatomy, anatomy
from heptane.tricks import Tricks
from heptane.tricks.cyclical import Cyclical, cosine_restarts, one_cycle, triangular
from heptane.tricks.data_parallel import DataParallel
from heptane.tricks.label_smoothing import LabelSmoothing, smooth, smooth_ctc_loss, soft_cross_entropy
from heptane.tricks.lr_scaling import LRScaling, scale_lr, warmup
from heptane.tricks.mixed_precision import MixedPrecision, precision
from heptane.tricks.mixup import Mixup, mix
from heptane.tricks.transfer import Transfer, freeze, param_groups, swap_head, train_mode
from heptane.weights import load_weights

__version__ = "0.1.0"
__all__ = [
    "Anatomy",
    "CropFlip",
    "CrossEntropy",
    "Cyclical",
    "Data",
    "DataParallel",
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
    "RaceResult",
    "Result",
    "Step",
    "Transfer",
    "Tricks",
    "anatomy",
    "as_scheduler",
    "cosine_restarts",
    "evaluate",
    "fit",
    "freeze",
    "join",
    "load_data",
    "load_run",
    "load_weights",
    "mix",
    "multiply",
    "one_cycle",
    "order",
    "pad",
    "param_groups",
    "precision",
    "race",
    "scale_lr",
    "smooth",
    "smooth_ctc_loss",
    "soft_cross_entropy",
    "swap_head",
    "train",
    "train_mode",
    "triangular",
    "warmup",
]
