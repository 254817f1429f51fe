"""The one owner of targets: blending by mixup, smoothing, weights, ignored positions, and what the mean is over.

A criterion has two forms of one loss. ``mean`` is what a hand-written loop calls on a whole batch. ``total`` is the sum
over a part of the batch (a worker's share, a micro-batch), to be divided by ``count`` of the *global* batch, so that
unequal parts weigh what they hold. ``plain`` is the loss without smoothing, for reports.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from heptane.base.errors import InputError, check_choice, check_range, one_line
from heptane.base.lazy import torch
from heptane.core.guess import guess_loss
from heptane.data.batches import copied, each, first_tensor, rows
from heptane.model.calling import call, main_output
from heptane.tricks.label_smoothing import (
    IGNORE_INDEX,
    LabelSmoothing,
    check_weight,
    counted,
    find_class_dim,
    smooth_binary,
    smooth_ctc_loss,
    soft_cross_entropy,
    spread,
    zero_if_none,
)
from heptane.tricks.mixup import MixedTargets, blend

Loss = Callable[..., Any]
FEW_COMPARED = 4  # samples whose losses are compared with that of all of them
PROBED = 5  # samples on which a loss of one's own is tried: the mean over 5 x 5 is another than that over 5
MOST_CLASSES = 1000  # of which each is counted by itself: beyond that, as with the words of a language, nobody looks
LOSSES = {  # a name for the user, and the function in torch.nn.functional
    "cross_entropy": "cross_entropy",
    "binary_cross_entropy": "binary_cross_entropy_with_logits",
    "mse": "mse_loss",
    "l1": "l1_loss",
    "smooth_l1": "smooth_l1_loss",
}


class Criterion(Protocol):
    """What the loop needs of a loss. ``targets`` are as the data gave them, or :class:`MixedTargets`."""

    @property
    def name(self) -> str: ...

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        """The loss of a whole batch, a scalar."""

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        """The sum of which ``mean`` is the ``count``-th part."""

    def count(self, targets: Any) -> float | torch.Tensor:
        """What the mean is over: valid targets, or the sum of their class weights."""

    def plain(self, output: Any, targets: Any) -> torch.Tensor:
        """The total without smoothing."""

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, float | torch.Tensor] | None:
        """How many predictions are right, out of how many; None where that has no meaning. What is not finite is wrong."""

    def by_class(self, output: Any, targets: Any) -> torch.Tensor | None:
        """Of each class how many of its samples are right, and how many it has, (2, K); None where there are no classes."""


def output_of(criterion: Criterion, model: torch.nn.Module, inputs: Any, targets: Any) -> Any:
    """The model's output for a batch; where the loss is the model's own, the model is given the targets too."""
    return seen(criterion, call(model, inputs, targets if isinstance(criterion, Returned) else None))


def seen(criterion: Criterion, answer: Any) -> Any:
    """What the criterion is given of a model's answer: its output, or all of it where a loss of the user's asks for that."""
    whole = isinstance(criterion, Returned) or (isinstance(criterion, Own) and not criterion.first)
    return answer if whole else main_output(answer)[0]


def tally(right: torch.Tensor, valid: torch.Tensor, truth: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Of each class how many of its samples are right, and how many it has, (2, K) in 64 bits; what is not valid is no
    sample."""
    truth = truth.long().where(valid, 0).flatten()
    parts = [part.flatten().double() for part in (right & valid, valid)]
    return torch.stack([torch.bincount(truth, part, num_classes)[:num_classes] for part in parts])


def divisor(count: float | torch.Tensor) -> float | torch.Tensor:
    """``count``, or where it is 0 the least number above: nothing counted has a total of 0, and so a mean of 0, not NaN."""
    tiny = torch.finfo(torch.float32).tiny
    return count.clamp(min=tiny) if isinstance(count, torch.Tensor) else max(count, tiny)


@dataclass(frozen=True)
class CrossEntropy:
    """Classification with integer (N,), (N, T) or soft targets, class weights, ignored positions and smoothing.

    What is ignored weighs 0, also under mixup (:func:`heptane.soft_cross_entropy`); the mean over nothing is 0, not NaN.
    """

    eps: float = 0.0
    weight: torch.Tensor | None = None
    ignore_index: int = IGNORE_INDEX
    class_dim: int | None = None
    log_probs: bool = False  # the outputs are, as for torch.nn.NLLLoss
    all_count: bool = False  # logits, no weight, nothing ignored: the mean is PyTorch's own, without a guard against 0 / 0
    column: bool = False  # integer targets come as (N, 1)
    name: str = "cross_entropy"

    def __post_init__(self) -> None:
        check_range("CrossEntropy.eps", self.eps, 0, 1)

    def seen(self, targets: Any) -> Any:
        """The targets as PyTorch's functions take them: integers of any kind in 64 bits, a column of them as a row."""
        if isinstance(targets, MixedTargets):
            return MixedTargets(self.seen(targets.first), self.seen(targets.second), targets.lam)
        if targets.is_floating_point():
            return targets
        return (targets.squeeze(1) if self.column else targets).long()

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets):
            count = blend(self._masses(targets.first), self._masses(targets.second), targets.lam).sum()
            return self._total(output, targets, self.eps) / divisor(count)
        if self.all_count and output.ndim == 2:
            return torch.nn.functional.cross_entropy(output, targets, label_smoothing=self.eps)
        return self._loss(output, targets, self.eps, "mean")

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._total(output, self.seen(targets), self.eps)

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._total(output, self.seen(targets), 0.0)

    def count(self, targets: Any) -> torch.Tensor:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets):
            return blend(self._masses(targets.first), self._masses(targets.second), targets.lam).sum()
        return self._masses(targets).sum()

    def correct(self, output: torch.Tensor, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets):
            pairs = zip(self._hits(output, targets.first), self._hits(output, targets.second), strict=True)
            right, valid = (blend(first.float(), second.float(), targets.lam) for first, second in pairs)
        else:
            right, valid = self._hits(output, targets)
        return right.sum(), valid.sum()

    def by_class(self, output: torch.Tensor, targets: Any) -> torch.Tensor | None:
        targets = self.seen(targets)
        if isinstance(targets, MixedTargets) or targets.is_floating_point():
            return None
        num_classes = output.shape[self._dim(output, targets)]
        return tally(*self._hits(output, targets), targets, num_classes) if num_classes <= MOST_CLASSES else None

    def _loss(self, output: torch.Tensor, targets: torch.Tensor, eps: float, reduction: str) -> torch.Tensor:
        weight = None if self.weight is None else self.weight.to(output)
        kind: dict[str, Any] = {"ignore_index": self.ignore_index, "reduction": reduction}
        if not self.log_probs or eps or targets.is_floating_point():
            return soft_cross_entropy(output, targets, eps=eps, weight=weight, class_dim=self.class_dim, **kind)
        loss = torch.nn.functional.nll_loss(output.movedim(self._dim(output, targets), 1), targets, weight, **kind)
        return zero_if_none(loss, targets, weight, self.ignore_index) if reduction == "mean" else loss

    def _total(self, output: torch.Tensor, targets: Any, eps: float) -> torch.Tensor:
        if not isinstance(targets, MixedTargets):
            return self._loss(output, targets, eps, "sum")
        log_p = output.movedim(self._dim(output, targets.first), -1).log_softmax(-1)
        check_weight(self.weight, log_p.shape[-1])
        first, share_of_first = self._distributions(targets.first, log_p)
        second, share_of_second = self._distributions(targets.second, log_p)
        q = spread(blend(first, second, targets.lam), blend(share_of_first, share_of_second, targets.lam), eps)
        return -(q * log_p if self.weight is None else q * log_p * self.weight.to(log_p)).sum()

    def _distributions(self, targets: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Targets like ``log_p`` (..., C), of zeros where ignored; and what each position weighs, 1 or 0."""
        valid = self._valid(targets)
        if targets.is_floating_point():
            rows = targets.movedim(self._dim(targets, targets), -1)
        else:
            rows = torch.nn.functional.one_hot(targets.long().where(valid, 0), log_p.shape[-1])
        return rows.where(valid[..., None], 0).to(log_p), valid.to(log_p)

    def _dim(self, output: torch.Tensor, targets: torch.Tensor) -> int:
        return find_class_dim(output.shape, targets.shape, targets.is_floating_point(), self.class_dim)

    def _valid(self, targets: torch.Tensor) -> torch.Tensor:
        if targets.is_floating_point():
            return counted(targets, self.ignore_index, self._dim(targets, targets))
        return targets != self.ignore_index

    def _masses(self, targets: torch.Tensor) -> torch.Tensor:
        valid = self._valid(targets)
        if self.weight is None or targets.is_floating_point():
            return valid.float()
        return self.weight.to(targets.device)[targets.long().where(valid, 0)] * valid

    def _hits(self, output: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dim, valid = self._dim(output, targets), self._valid(targets)
        truth = targets.argmax(dim) if targets.is_floating_point() else targets
        # The largest of a row is NaN where one is, and infinite where nothing can be said; -inf rules a class out, no more.
        return (output.argmax(dim) == truth) & valid & output.amax(dim).isfinite(), valid


class _Reduced:
    """The forms of a loss that is one function of (output, targets, eps, reduction)."""

    eps: float
    _loss: Callable[..., torch.Tensor]

    def mean(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, self.eps, "mean")

    def total(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, self.eps, "sum")

    def plain(self, output: torch.Tensor, targets: Any) -> torch.Tensor:
        return self._loss(output, targets, 0.0, "sum")


@dataclass(frozen=True)
class Elementwise(_Reduced):
    """A mean over elements, which takes ``reduction=``: multi-label and regression losses. Outputs match targets' shape."""

    name: str
    function: Loss
    eps: float = 0.0
    multi_label: bool = False
    pos_weight: torch.Tensor | None = None

    def count(self, targets: Any) -> float:
        return float((targets.first if isinstance(targets, MixedTargets) else targets).numel())

    def correct(self, output: torch.Tensor, targets: Any) -> tuple[torch.Tensor, float] | None:
        if not self.multi_label:
            return None
        if not isinstance(targets, MixedTargets):
            return self._hits(output, targets).sum(), self.count(targets)
        first, second = (self._hits(output, part).float() for part in (targets.first, targets.second))
        return blend(first, second, targets.lam).sum(), self.count(targets)

    def _loss(self, output: torch.Tensor, targets: Any, eps: float, reduction: str) -> torch.Tensor:
        kind = {} if self.pos_weight is None else {"pos_weight": self.pos_weight.to(output)}
        loss: torch.Tensor = self.function(*self._aligned(output, targets, eps), reduction=reduction, **kind)
        return loss

    def _hits(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        output, truth = self._aligned(output, targets, 0.0)
        return ((output > 0) == (truth > 0.5)) & output.isfinite()

    def by_class(self, output: torch.Tensor, targets: Any) -> torch.Tensor | None:
        """Where there is one logit per sample: of what is 0, and of what is 1."""
        if not self.multi_label or isinstance(targets, MixedTargets) or targets.shape[1:].numel() != 1:
            return None
        right, truth = self._hits(output, targets), targets > 0.5
        return tally(right, torch.ones_like(right), truth, 2)

    def _aligned(self, output: torch.Tensor, targets: Any, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
        if isinstance(targets, MixedTargets):
            targets = blend(targets.first.to(output), targets.second.to(output), targets.lam)
        if output.shape != targets.shape:
            if not same_but_ones(output.shape, targets.shape):
                raise InputError(
                    f"outputs of shape {tuple(output.shape)} and targets of shape {tuple(targets.shape)}: "
                    f"{self.name} compares element by element, so give the model as many outputs as there are targets"
                )
            output = output.reshape(targets.shape)
        return output, smooth_binary(targets.to(output), eps) if eps else targets.to(output)


@dataclass(frozen=True)
class Ctc(_Reduced):
    """CTC: outputs are log-probabilities (T, N, C); targets (labels (N, S), input lengths (N,), target lengths (N,))."""

    eps: float = 0.0
    blank: int = 0
    zero_infinity: bool = False
    name: str = "ctc"

    def count(self, targets: Any) -> float:
        return float(len(targets[1]))

    def correct(self, output: torch.Tensor, targets: Any) -> None:
        return None

    def by_class(self, output: Any, targets: Any) -> None:
        return None

    def _loss(self, output: torch.Tensor, targets: Any, eps: float, reduction: str) -> torch.Tensor:
        return smooth_ctc_loss(
            output, *targets, eps=eps, blank=self.blank, zero_infinity=self.zero_infinity, reduction=reduction
        )


@dataclass(frozen=True)
class Own:
    """A loss of the user's: ``function(output, targets)`` -> the mean over the samples (or one loss per sample)."""

    function: Loss
    name: str = "own"
    first: bool = False  # of an answer of several parts it is given the main one, as from a tuple the first
    aligned: bool = False  # the outputs are given in the shape of the targets, as (N, 1) beside (N,)
    shape: tuple[int, ...] | None = None  # of a sample's target: (N,) and (N, 1) are given in the one that was tried

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        if not isinstance(targets, MixedTargets):
            return self._mean(output, targets)
        if targets.first.is_floating_point():
            return self._mean(output, blend(targets.first, targets.second, targets.lam))
        if bool((targets.lam != targets.lam[:1]).any()):
            raise InputError("Mixup.per_sample=True with a loss of your own and integer targets: set it to False")
        return blend(self._mean(output, targets.first), self._mean(output, targets.second), targets.lam[0])

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        return self.mean(output, targets) * self.count(targets)

    plain = total

    def count(self, targets: Any) -> float:
        first = targets.first if isinstance(targets, MixedTargets) else targets
        while not isinstance(first, torch.Tensor):
            first = next(iter(first.values())) if isinstance(first, dict) else first[0]
        return float(len(first))

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, float | torch.Tensor] | None:
        output = main_output(output)[0]
        return CrossEntropy().correct(output, targets) if self._classifies(output, targets) else None

    def by_class(self, output: Any, targets: Any) -> torch.Tensor | None:
        output = main_output(output)[0]
        return CrossEntropy().by_class(output, targets) if self._classifies(output, targets) else None

    def _classifies(self, output: Any, targets: Any) -> bool:
        first, output = targets.first if isinstance(targets, MixedTargets) else targets, main_output(output)[0]
        if not isinstance(first, torch.Tensor) or first.is_floating_point() or not isinstance(output, torch.Tensor):
            return False
        return output.shape[:1] == first.shape == output.shape[:-1] and output.shape[-1] > 1

    def _mean(self, output: Any, targets: Any) -> torch.Tensor:
        if self.shape is not None and isinstance(targets, torch.Tensor) and same_but_ones(targets.shape[1:], self.shape):
            targets = targets.reshape(len(targets), *self.shape)
        targets = each(torch.clone, targets)  # a loss may work in place, and what is measured comes after it
        output = output.reshape(targets.shape) if self.aligned else output
        loss: torch.Tensor = self.function(output, targets)
        return loss.mean() if loss.ndim else loss


@dataclass(frozen=True)
class Returned:
    """The loss that a model returns when it is given the labels, as those of transformers do: the mean over the labels that
    are not ignored. It is the output, or its entry ``loss``."""

    name: str = "model"
    counts: str = "labels"
    """What the mean is over: "labels", all that are not ignored; "shifted", these but for each row's first, as a causal
    language model's; or "unknown"."""

    def mean(self, output: Any, targets: Any) -> torch.Tensor:
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, torch.Tensor) or loss.ndim > 1:
            kind = f"shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"type {type(output).__name__}"
            raise InputError(f"loss='model': the model gave an output of {kind}, without a loss; pass a loss instead")
        return loss.mean()

    def total(self, output: Any, targets: Any) -> torch.Tensor:
        mean, count = self.mean(output, targets), self.count(targets)
        if isinstance(count, torch.Tensor):  # a part without a label has a mean of NaN, and weighs nothing
            mean = torch.where(count > 0, mean, mean.nan_to_num())
        return mean * count

    plain = total

    def count(self, targets: Any) -> float | torch.Tensor:
        if not isinstance(targets, torch.Tensor) or targets.is_floating_point():
            return float(len(targets))
        if self.counts == "unknown":
            return float(len(targets))
        return ((targets[..., 1:] if self.counts == "shifted" else targets) != IGNORE_INDEX).sum()

    def correct(self, output: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
        logits = self._logits(output, targets)
        return None if logits is None else CrossEntropy().correct(logits, targets)

    def by_class(self, output: Any, targets: Any) -> torch.Tensor | None:
        logits = self._logits(output, targets)
        return None if logits is None else CrossEntropy().by_class(logits, targets)

    def _logits(self, output: Any, targets: Any) -> torch.Tensor | None:
        logits = output.get("logits") if isinstance(output, Mapping) else None
        if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or targets.shape != logits.shape[:1]:
            return None
        return None if targets.is_floating_point() else logits


def count_as_the_model(criterion: Criterion, output: Any, labels: Any) -> Criterion:
    """A criterion that is the model's own loss, counting what that is a mean over: found by comparing the loss of a few
    samples with the cross-entropy of their logits, with and without a shift by one position."""
    if not isinstance(criterion, Returned) or not isinstance(labels, torch.Tensor) or labels.ndim < 2:
        return criterion
    logits = output.get("logits") if isinstance(output, Mapping) else None
    found = "unknown"
    if isinstance(logits, torch.Tensor) and not labels.is_floating_point() and logits.shape[:-1] == labels.shape:
        loss = criterion.mean(output, labels).float()
        for kind, (scores, truth) in {
            "labels": (logits, labels),
            "shifted": (logits[..., :-1, :], labels[..., 1:]),
        }.items():
            expected = torch.nn.functional.cross_entropy(
                scores.float().flatten(0, -2), truth.flatten(), ignore_index=IGNORE_INDEX
            )
            if torch.allclose(loss, expected, rtol=1e-3, atol=1e-5):
                found = kind
    return replace(criterion, counts=found)


def check_parts(criterion: Criterion, targets: Any, parts: int) -> None:
    """Refuse to split a batch whose loss, the model's own, is a mean over nobody knows what, where that matters.

    Args:
        targets: those that are known.
        parts: workers times micro-batches.
    """
    if not isinstance(criterion, Returned) or criterion.counts != "unknown" or parts == 1:
        return
    if isinstance(targets, torch.Tensor) and not targets.is_floating_point() and bool((targets == IGNORE_INDEX).any()):
        raise InputError(
            "loss='model' with labels that are ignored (-100): what the model's mean is over cannot be told from its loss "
            "and logits, so parts of a batch cannot be weighed; train with one worker and accumulate=1, or pass a loss"
        )


def is_mean_over_samples(criterion: Criterion, output: Any, targets: Any) -> tuple[float, float] | None:
    """The loss of a few samples and the mean of each one's, where a loss of the user's own tells them apart; None where they
    are equal: then parts of a batch can be weighed by their samples."""
    if not isinstance(criterion, Own) or not isinstance(output, torch.Tensor) or not isinstance(targets, torch.Tensor):
        return None
    if len(output) != len(targets):
        return None
    try:
        whole = float(criterion.mean(output, targets))
        each = [float(criterion.mean(output[at : at + 1], targets[at : at + 1])) for at in range(len(output))]
    except (RuntimeError, ValueError, IndexError):  # a loss over pairs of samples, say
        return None
    mean = sum(each) / len(each)
    return None if abs(whole - mean) <= 1e-4 * max(abs(whole), abs(mean), 1e-12) or mean != mean else (whole, mean)


def choose_criterion(
    loss: str | Loss | CrossEntropy | None, output: Any, targets: Any, smoothing: LabelSmoothing | None
) -> tuple[Criterion, str]:
    """The criterion for ``loss`` (a name, a ``torch.nn`` loss, a function, or None to go by the targets), and why.

    Raises:
        InputError: smoothing where there is nothing to smooth, smoothing asked for twice, or a loss that is not a mean.
    """
    eps, why = smoothing.eps if smoothing else 0.0, "asked for"
    answer, (output, how) = output, main_output(output)
    if loss is None:
        loss, why = _by_targets(output, targets)
    criterion = _by_name(loss, eps) if isinstance(loss, str) else _by_object(loss, eps)
    if isinstance(criterion, CrossEntropy) and isinstance(targets, torch.Tensor) and isinstance(output, torch.Tensor):
        column = not targets.is_floating_point() and targets.shape[1:] == (1,) and output.ndim == 2
        criterion = replace(criterion, column=column)
    if isinstance(criterion, Own) and how:
        criterion = given_first(criterion, answer, answer, targets)
        output = seen(criterion, answer)
    if how and not isinstance(criterion, Returned) and (not isinstance(criterion, Own) or criterion.first):
        why += f"; the output is {how}"
    if isinstance(criterion, Own) and isinstance(targets, torch.Tensor) and isinstance(output, torch.Tensor):
        criterion, said = aligned_own(criterion, output, targets)
        why += said
    if isinstance(criterion, Own) and isinstance(targets, torch.Tensor):
        criterion, said = within_samples(replace(criterion, shape=tuple(targets.shape[1:])), output, targets)
        why += said
    if smoothing and isinstance(criterion, Elementwise) and not criterion.multi_label:
        raise InputError(f"label_smoothing with loss {criterion.name!r}: regression has no classes to smooth; turn it off")
    if smoothing and isinstance(criterion, Returned):
        raise InputError(
            "label_smoothing with loss='model': heptane cannot smooth inside the model; leave loss out, "
            "and it is computed from the model's logits, or turn label_smoothing off"
        )
    if smoothing and isinstance(criterion, Own):
        raise InputError(
            "label_smoothing with a loss of your own: heptane cannot smooth inside it; "
            "use loss='cross_entropy' or torch.nn.CrossEntropyLoss(...), or turn label_smoothing off"
        )
    return criterion, f"loss {criterion.name}: {why}"


def _by_targets(output: Any, targets: Any) -> tuple[str, str]:
    if not isinstance(targets, torch.Tensor) or not isinstance(output, torch.Tensor):
        raise InputError("loss=None: with outputs or targets that are not one tensor the loss cannot be guessed; pass loss=")
    return guess_loss(output, targets)


def module_of(loss: Any) -> torch.nn.Module | None:
    """The module that a loss is, or is a method or a partial of: what it holds is trained, saved and resumed with the run.
    None where it holds nothing."""
    if isinstance(loss, partial):
        return module_of(loss.func)
    found = loss if isinstance(loss, torch.nn.Module) else getattr(loss, "__self__", None)
    return found if isinstance(found, torch.nn.Module) and (found.state_dict() or any(found.buffers())) else None


def over_classes(loss: Any) -> bool:
    """Whether ``loss``, as :func:`choose_criterion` takes it, compares integer labels with an output per class."""
    if isinstance(loss, (CrossEntropy, torch.nn.CrossEntropyLoss, torch.nn.NLLLoss)):
        return True
    return loss is torch.nn.functional.cross_entropy or loss in (None, "cross_entropy", "model")


def given_first(criterion: Own, training: Any, evaluation: Any, targets: Any) -> Own:
    """``criterion`` with the whole answers of the model if it takes them, or with their outputs if it takes only these.

    Args:
        training, evaluation: what the model gives for a few samples in the one mode and the other.
        targets: theirs, or those of more samples.

    Raises:
        InputError: it takes what the model gives in the one mode, and not in the other.
    """
    size = len(first_tensor(main_output(evaluation)[0]))
    few = each(lambda t: t[:size] if t.ndim else t, targets)
    given = criterion.function
    given = copy.deepcopy(given) if isinstance(given, torch.nn.Module) else given

    def fails(answer: Any) -> Exception | None:
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                float(Own(given)._mean(answer, few))
        except Exception as error:
            return error
        return None

    wrong = [fails(training), fails(evaluation)]
    if not any(wrong):
        return criterion
    if not fails(main_output(training)[0]) and not fails(main_output(evaluation)[0]):
        return replace(criterion, first=True)
    if all(wrong):
        return criterion  # what the function says of it is the best message
    mode, error = ("training", wrong[0]) if wrong[0] else ("evaluation", wrong[1])
    assert error is not None
    raise InputError(
        f"the model gives {type(training).__name__} in training and {type(evaluation).__name__} in evaluation, and the loss "
        f"does not take that of {mode} ({one_line(error)}): let it take both, or leave loss out, and the first is the output"
    )


def aligned_own(criterion: Own, output: torch.Tensor, targets: torch.Tensor) -> tuple[Own, str]:
    """``criterion`` for outputs and targets whose shapes differ by ones, as (N, 1) and (N,): a function that subtracts them
    would compare each output with each target, (N, N). Tried on numbers of these shapes, as given and alike.

    Raises:
        InputError: the loss takes them neither way.
    """
    shape = (PROBED, *targets.shape[1:])
    if targets.shape[1:] == output.shape[1:] or not same_but_ones(output.shape[1:], targets.shape[1:]):
        return criterion, ""
    random = torch.Generator().manual_seed(0)
    outputs = torch.rand((PROBED, *output.shape[1:]), generator=random).to(output)
    wanted = torch.rand(shape, generator=random) * (1 if targets.is_floating_point() else 2)
    wanted = wanted.to(targets)
    values: list[float | None] = []
    failure: Exception | None = None
    given = criterion.function
    tried = copy.deepcopy(given) if isinstance(given, torch.nn.Module) else given  # buffers of the user's stay as they are
    with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in (outputs, outputs.reshape(shape)):
            try:
                values.append(float(Own(tried)._mean(one, wanted)))
            except Exception as error:
                failure = error
                values.append(None)
    as_given, alike = values
    if as_given is None and alike is None:
        raise InputError(
            f"outputs of shape {tuple(output.shape[1:])} and targets of shape {tuple(targets.shape[1:])} per sample: the "
            f"loss takes them neither so nor in one shape ({one_line(failure) if failure else ''}): give both the same shape"
        )
    if alike is None or as_given == alike or (as_given is not None and math.isclose(as_given, alike, rel_tol=1e-5)):
        return criterion, ""
    said = f"; outputs {_per_sample(output)} are given to it in the shape of the targets, {_per_sample(targets)}"
    return replace(criterion, aligned=True), said


def within_samples(criterion: Own, output: Any, targets: torch.Tensor) -> tuple[Own, str]:
    """``criterion`` with one target per sample in that of the shapes (N,) and (N, 1) in which it compares each sample with
    its own target: where a part of the outputs is (N, 1), a function that subtracts (N,) compares each with all, (N, N)."""
    if criterion.aligned or not targets.is_floating_point() or targets.shape[1:].numel() != 1:
        return criterion, ""
    other = replace(criterion, shape=() if criterion.shape else (1,))
    given = criterion.function
    if isinstance(given, torch.nn.Module):
        given = copy.deepcopy(given)
    apart, alike = (_mixes_samples(replace(one, function=given), output, targets) for one in (criterion, other))
    if not apart or alike is not False:
        return criterion, ""
    return other, f"; targets are given to it as {'(N, 1)' if other.shape else '(N,)'}, so that each is its own sample's"


def _mixes_samples(criterion: Own, output: Any, targets: torch.Tensor) -> bool | None:
    """Whether the loss of a few samples is another than the mean of each one's; None where that cannot be seen."""
    try:
        size = min(len(first_tensor(output)), FEW_COMPARED)
        parts = [slice(size), *(slice(at, at + 1) for at in range(size))]
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole, *single = (float(criterion.mean(rows(copied(output), part), targets[part])) for part in parts)
    except Exception:  # it needs more samples than one, say
        return None
    mean = sum(single) / size
    return None if mean != mean or size < 2 else abs(whole - mean) > 1e-4 * max(abs(whole), abs(mean), 1e-12)


def same_but_ones(first: Iterable[int], second: Iterable[int]) -> bool:
    """Whether two shapes differ by dimensions of 1 only."""
    return [size for size in first if size != 1] == [size for size in second if size != 1]


def _per_sample(tensor: torch.Tensor) -> str:
    return str(("N", *tensor.shape[1:])).replace("'", "")


def _by_name(name: str, eps: float) -> Criterion:
    if name == "model":
        return Returned()
    check_choice("loss", name, [*LOSSES, "model"])
    if name == "cross_entropy":
        return CrossEntropy(eps=eps)
    return Elementwise(name, getattr(torch.nn.functional, LOSSES[name]), eps, name == "binary_cross_entropy")


def _by_object(loss: Loss | CrossEntropy, eps: float) -> Criterion:
    nn = torch.nn
    if not isinstance(loss, CrossEntropy) and not callable(loss):
        raise InputError(f"loss={loss!r}: expected None, one of {', '.join(LOSSES)}, model, a torch.nn loss or a function")
    if getattr(loss, "reduction", "mean") != "mean":
        raise InputError(f"loss={loss!r}: a step's loss is a mean; build it with reduction='mean'")
    for name, function_name in LOSSES.items():
        if loss is getattr(nn.functional, function_name):
            return _by_name(name, eps)
    if isinstance(loss, CrossEntropy):
        return replace(loss, eps=_once(eps, loss.eps, "CrossEntropy(eps"))
    module: Any = loss
    kind = type(module)  # exactly: a subclass may compute something else, so it is the user's own
    if kind is nn.CrossEntropyLoss:
        eps = _once(eps, module.label_smoothing, "CrossEntropyLoss(label_smoothing")
        return CrossEntropy(eps, module.weight, module.ignore_index)
    if kind is nn.NLLLoss:
        return CrossEntropy(eps, module.weight, module.ignore_index, log_probs=True, name="nll")
    if kind is nn.BCEWithLogitsLoss and module.weight is None:
        function: Loss = nn.functional.binary_cross_entropy_with_logits
        return Elementwise("binary_cross_entropy", function, eps, True, module.pos_weight)
    if kind is nn.CTCLoss:
        return Ctc(eps, module.blank, module.zero_infinity)
    named = {nn.MSELoss: "mse", nn.L1Loss: "l1"}.get(kind)
    if named:
        return _by_name(named, eps)
    if kind is nn.SmoothL1Loss:
        return Elementwise("smooth_l1", partial(nn.functional.smooth_l1_loss, beta=module.beta))
    if kind is nn.HuberLoss:
        return Elementwise("huber", partial(nn.functional.huber_loss, delta=module.delta))
    return Own(module)


def _once(asked: float, own: float, where: str) -> float:
    if asked and own:
        raise InputError(f"LabelSmoothing.eps={asked} and {where}={own}) would smooth twice: keep one of them")
    return asked or own
