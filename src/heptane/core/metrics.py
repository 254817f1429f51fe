"""Running averages that do not make training wait: outputs are kept a while, then reduced together."""

from __future__ import annotations

import math
from typing import Any

from heptane.base.lazy import torch
from heptane.core.losses import Criterion
from heptane.core.targets import MixedTargets
from heptane.data.splits import BALANCED
from heptane.distributed.workers import ALONE, Worker, all_gather, all_reduce

PENDING_ELEMENTS = 1 << 16  # of outputs kept before they are reduced: about 100 steps of 64 x 10, one step of a big model
NONFINITE_LIMIT = 20  # steps with a loss that is not finite, after which training is stopped


class TrainMeter:
    """Loss and accuracy since the last :meth:`reset`; ``add`` only stores references, so no step waits for it.

    Sums are added step by step and in 64 bits, so that when they are reduced, for a checkpoint say, changes no bit of them.
    """

    def __init__(self, criterion: Criterion, worker: Worker = ALONE) -> None:
        self.criterion, self.worker = criterion, worker
        self.nonfinite, self.first_nonfinite, self.in_a_row = 0, -1, 0
        self._pending: list[tuple[Any, Any]] = []
        self._complete = 0  # how many of them belong to steps that are noted
        self._losses: list[torch.Tensor] = []
        self._steps: list[tuple[int, int]] = []
        self._elements = 0
        self.reset()

    def reset(self) -> None:
        """Forget the averages, not the count of steps that were not finite."""
        self.flush() if self._losses else None
        self.mixed = False
        self._sums = [0.0] * 6

    def add(self, output: Any, targets: Any) -> None:
        """Keep one part's output and targets for the accuracy and the unsmoothed loss."""
        output = output.detach() if isinstance(output, torch.Tensor) else output
        self._pending.append((output, targets))
        self._elements += _elements(output)

    def discard(self) -> None:
        """Forget the parts added since the last :meth:`add_step`: their step was not applied."""
        del self._pending[self._complete :]
        self._elements = sum(_elements(output) for output, _ in self._pending)

    def add_step(self, step: int, loss: torch.Tensor, size: int) -> None:
        """Note one step's loss; reduce what is kept when it has grown large."""
        self._losses.append(loss)
        self._steps.append((step, size))
        self._complete = len(self._pending)
        if self._elements >= PENDING_ELEMENTS:
            self.flush()

    def flush(self) -> None:
        """Reduce what is kept.

        Raises:
            FloatingPointError: too many steps in a row had a loss that is not finite; the message names the first.
        """
        with torch.no_grad():
            losses = torch.stack(self._losses).tolist()
            scores = _score(self.criterion, _joined(self._pending, self.criterion))
        self.mixed |= any(isinstance(targets, MixedTargets) for _, targets in self._pending)
        for loss, (step, size) in zip(losses, self._steps, strict=True):
            if math.isfinite(loss):
                self._sums[0] += loss * size
                self._sums[1] += size
                self.in_a_row = 0
                continue
            self.first_nonfinite = step if not self.in_a_row else self.first_nonfinite
            self.nonfinite, self.in_a_row = self.nonfinite + 1, self.in_a_row + 1
        for part in scores:
            self._sums[2:] = [before + more for before, more in zip(self._sums[2:], part, strict=True)]
        self._pending, self._losses, self._steps, self._elements, self._complete = [], [], [], 0, 0
        if self.in_a_row > NONFINITE_LIMIT:
            raise FloatingPointError(
                f"the loss was not finite in {self.in_a_row} steps in a row, first at step {self.first_nonfinite}: look at "
                "the inputs of that step, and at what the loss adds that has no gradient; lower the learning rate"
            )

    def peek(self) -> dict[str, float]:
        """The averages of this worker as of the last reduction; a look changes no bit of what :meth:`read` will give."""
        return self._averages(self._sums)

    def read(self) -> dict[str, float]:
        """The averages, over all workers.

        ``train_loss``; where it has a meaning ``train_accuracy`` (under mixup ``train_accuracy_mixed``, weighted by the
        coefficients); with smoothing ``train_loss_unsmoothed``.
        """
        if self._losses:
            self.flush()
        return self._averages(all_reduce(torch.tensor(self._sums, dtype=torch.float64, device="cpu"), self.worker).tolist())

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this worker's sums."""
        if self._losses:
            self.flush()
        return {
            "sums": list(self._sums),
            "mixed": self.mixed,
            "nonfinite": [self.nonfinite, self.first_nonfinite, self.in_a_row],
        }

    def load_state(self, state: dict[str, Any] | None) -> None:
        """What :meth:`state` gave; None where it is added up in another worker's."""
        self._pending, self._losses, self._steps, self._elements, self._complete = [], [], [], 0, 0
        if state is None:
            self._sums, self.mixed = [0.0] * 6, False
        else:
            self._sums, self.mixed = [float(value) for value in state["sums"]], bool(state["mixed"])
            self.nonfinite, self.first_nonfinite, self.in_a_row = state["nonfinite"]

    @staticmethod
    def together(states: list[dict[str, Any]], workers: int = 1) -> dict[str, Any]:
        """The states of several workers as that of the first of ``workers``; the others begin with nothing.

        Each of several workers notes a step's loss, whose mean over them is the step's, with the size of the whole batch: so
        what was noted by other workers than go on has to weigh as if as many had noted it.
        """
        sums = [math.fsum(values) for values in zip(*(state["sums"] for state in states), strict=True)]
        sums[:2] = [value * workers / len(states) for value in sums[:2]]
        return {**states[0], "sums": sums, "mixed": any(state["mixed"] for state in states)}

    def _averages(self, sums: list[float]) -> dict[str, float]:
        loss, size, plain, count, correct, out_of = sums
        found = {"train_loss": loss / size if size else float("nan")}
        if _smooths(self.criterion) and count:
            found["train_loss_unsmoothed"] = plain / count
        if out_of:
            found["train_accuracy_mixed" if self.mixed else "train_accuracy"] = correct / out_of
        return found


class EvalMeter:
    """Sums over an evaluation, each sample once over all workers."""

    def __init__(self, criterion: Criterion, worker: Worker = ALONE) -> None:
        self.criterion, self.worker = criterion, worker
        self._sums = torch.zeros(4, dtype=torch.float64, device="cpu")
        self._classes = torch.zeros(2, 0, dtype=torch.float64, device="cpu")

    def add(self, output: Any, targets: Any) -> None:
        """Add one batch."""
        classes = self.criterion.by_class(output, targets)
        (scores,) = _score(self.criterion, [(output, targets)], always_plain=True)
        self._sums += torch.tensor(scores, dtype=torch.float64, device="cpu")
        if classes is not None:
            wider = torch.zeros(2, max(classes.shape[1], self._classes.shape[1]), dtype=torch.float64, device="cpu")
            for part in (self._classes, classes.cpu()):
                wider[:, : part.shape[1]] += part
            self._classes = wider

    def read(self) -> dict[str, float]:
        """``loss`` (unsmoothed) and, where it has a meaning, ``accuracy``; where the classes are out of balance (the largest
        more than ``BALANCED`` times the smallest that occurs) ``balanced_accuracy`` too, the mean over the classes that
        occur of the share of each that is right."""
        plain, count, correct, out_of = all_reduce(self._sums.clone(), self.worker).tolist()
        found = {"loss": plain / count if count else float("nan")}
        if out_of:
            found["accuracy"] = correct / out_of
        right, held = self._of_classes()
        occurs = held > 0
        if occurs.sum() > 1 and held.max() > BALANCED * held[occurs].min():
            found["balanced_accuracy"] = float((right[occurs] / held[occurs]).mean())
        return found

    def _of_classes(self) -> torch.Tensor:
        """Of each class how many are right, and how many there are, of all workers: one that had no sample knows of none."""
        mine = self._classes
        if self.worker.size == 1:
            return mine
        width = max(all_gather(mine.shape[1], self.worker))
        return all_reduce(torch.nn.functional.pad(mine, (0, width - mine.shape[1])), self.worker)


def _score(
    criterion: Criterion, batches: list[tuple[Any, Any]], *, always_plain: bool = False
) -> list[tuple[float, float, float, float]]:
    """Of each batch the sum of the unsmoothed loss and what it is a mean over, the hits and what they are out of."""
    found = []
    for output, targets in batches:
        plain: Any = 0.0
        count: Any = 0.0
        correct, out_of = criterion.correct(output, targets) or (0.0, 0.0)
        if always_plain or _smooths(criterion):  # last: a loss of the user's may work in place on the output
            plain, count = criterion.plain(output, targets), criterion.count(targets)
        found.append((plain, count, correct, out_of))
    return [(float(plain), float(count), float(correct), float(out_of)) for plain, count, correct, out_of in found]


def _elements(output: Any) -> int:
    return output.numel() if isinstance(output, torch.Tensor) else PENDING_ELEMENTS


def _smooths(criterion: Criterion) -> bool:
    return bool(getattr(criterion, "eps", 0))


def _joined(pending: list[tuple[Any, Any]], criterion: Criterion) -> list[tuple[Any, Any]]:
    """Several batches of (N, K) outputs and (N,) targets as one, where only hits are counted; anything else as it is."""
    if len(pending) < 2 or _smooths(criterion) or not all(_is_flat(output, targets) for output, targets in pending):
        return pending
    return [(torch.cat([output for output, _ in pending]), torch.cat([targets for _, targets in pending]))]


def _is_flat(output: Any, targets: Any) -> bool:
    return isinstance(output, torch.Tensor) and isinstance(targets, torch.Tensor) and output.ndim == 2 and targets.ndim == 1
