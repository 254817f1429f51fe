"""Whether more or less of a metric is better, decided here: the metric itself, known names, else a question."""

from __future__ import annotations

import re
from typing import Any

from heptane.base.errors import InputError
from heptane.base.lazy import np

_LOWER = """
    loss error errors mae mse rmse msle rmsle mape smape wape nll perplexity ppl wer cer ter mer eer fpr fnr fid kid lpips
    brier ece hinge hamming entropy divergence kl regret distance deviation residual misses wrong bpb bpc
"""
_HIGHER = """
    accuracy acc f1 fbeta auc auroc roc ap map mrr ndcg precision recall sensitivity specificity tpr tnr iou jaccard dice
    bleu rouge meteor chrf r2 kappa mcc psnr ssim pesq stoi correlation pearson spearman likelihood elbo reward correct hits
"""
LOWER, HIGHER = frozenset(_LOWER.split()), frozenset(_HIGHER.split())
FLIPS = frozenset({"negative", "neg"})  # as in scikit-learn's names
# What is measured of a metric is no longer it: less of an accuracy's drop, or of its spread over classes, is better.
_OTHERS = """
    minus inverse inv drop gap diff difference delta change decrease increase reduction improvement gain std stdev sd var
    variance spread range ratio rank time seconds no non not without
"""
OTHERS = frozenset(_OTHERS.split())
WAYS = ("min", "max")


def known_direction(name: str) -> str | None:
    """``"min"`` or ``"max"`` for a metric of a known name, or None. Whole words count, so that ``gloss`` is no loss.

    Example:
        >>> known_direction("valid_word_error_rate"), known_direction("valid_top5_accuracy"), known_direction("valid_gloss")
        ('min', 'max', None)
    """
    words = re.findall(r"[a-z]+\d*|\d+", re.sub(r"([a-z\d])([A-Z])", r"\1 \2", name.replace("IoU", "_iou")).lower())
    words = [word if word in LOWER | HIGHER else word.rstrip("0123456789") for word in words]
    found = {"min" for word in words if word in LOWER} | {"max" for word in words if word in HIGHER}
    if len(found) != 1 or OTHERS & set(words):
        return None
    way = found.pop()
    return way if sum(word in FLIPS for word in words) % 2 == 0 else WAYS[way == "min"]


def direction(name: str, metric: Any = None) -> str:
    """``"min"`` where less of the metric is better, else ``"max"``.

    Args:
        name: what it is called.
        metric: the metric itself, whose ``higher_is_better`` counts first, as torchmetrics' have it.

    Raises:
        InputError: neither says.
    """
    said = getattr(metric, "higher_is_better", None)
    if isinstance(said, (bool, np.bool_)):
        return WAYS[bool(said)]
    found = known_direction(name)
    if found is None:
        raise InputError(
            f"metric {name!r}: nothing says whether more or less of it is better: pass target=({name!r}, value, 'min') or "
            f"({name!r}, value, 'max'), or give the metric an attribute higher_is_better"
        )
    return found


def lower_is_better(name: str) -> bool:
    """Whether less of a metric of this name is better; of one that is not known, more."""
    return known_direction(name) == "min"
