"""Whether lower or higher values of a metric are better: by the metric itself or by known names; otherwise the user is
asked."""

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
# A statistic of a metric need not share its direction: a lower drop in accuracy is better.
_OTHERS = """
    minus inverse inv drop gap diff difference delta change decrease increase reduction improvement gain std stdev sd var
    variance spread range ratio rank time seconds no non not without
"""
OTHERS = frozenset(_OTHERS.split())
WAYS = ("min", "max")


def known_direction(name: str) -> str | None:
    """``"min"`` or ``"max"`` for a metric of a known name, else None. Only whole words count, so ``gloss`` is not a loss.

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
    """``"min"`` if lower values of the metric are better, else ``"max"``.

    Args:
        name: of the metric.
        metric: the metric itself; its ``higher_is_better``, as in torchmetrics, takes precedence.

    Raises:
        InputError: neither decides it.
    """
    declared = getattr(metric, "higher_is_better", None)
    if isinstance(declared, (bool, np.bool_)):
        return WAYS[bool(declared)]
    found = known_direction(name)
    if found is None:
        raise InputError(
            f"metric {name!r}: unknown whether higher or lower is better: pass target=({name!r}, value, 'min') or "
            f"({name!r}, value, 'max'), or give the metric an attribute higher_is_better"
        )
    return found


def lower_is_better(name: str, given: bool | None = None) -> bool:
    """Whether less of a metric is better: as ``given``, else by its name; more if the name is unknown."""
    return known_direction(name) == "min" if given is None else given
