"""Running averages of loss and accuracy that do not synchronize every step: outputs are kept and reduced together."""

from __future__ import annotations

import math
from typing import Any

from heptane.base.lazy import torch
from heptane.core.losses import Criterion
from heptane.core.targets import MixedTargets
from heptane.data.splits import BALANCED
from heptane.distributed.workers import SINGLE_WORKER, Worker, all_gather, all_reduce

PENDING_ELEMENTS = 1 << 16  # output elements kept before they are reduced: about 100 steps of 64 x 10
NONFINITE_LIMIT = 20  # consecutive steps with a non-finite loss before training stops


class TrainMeter:
    """Training loss and accuracy since the last :meth:`reset`. ``add`` only stores references, so steps are not
    synchronized.

    Sums are accumulated step by step in float64, so their bits do not depend on when they are reduced, such as at a
    checkpoint.
    """

    def __init__(self, criterion: Criterion, worker: Worker = SINGLE_WORKER) -> None:
        self.criterion, self.worker = criterion, worker
        self.nonfinite, self.first_nonfinite, self.in_a_row = 0, -1, 0
        self._drop_pending()
        self.reset()

    def _drop_pending(self) -> None:
        self._pending: list[tuple[Any, Any]] = []
        self._complete = 0  # how many of them belong to steps that were added
        self._losses: list[torch.Tensor] = []
        self._steps: list[tuple[int, int]] = []
        self._elements = 0

    def reset(self) -> None:
        """Reset the averages, but not the count of non-finite steps."""
        self.flush()
        self.mixed = False
        self._sums = [0.0] * 6

    def add(self, output: Any, targets: Any) -> None:
        """Keep the output and targets of one part of the batch, for the accuracy and the unsmoothed loss."""
        output = output.detach() if isinstance(output, torch.Tensor) else output
        self._pending.append((output, targets))
        self._elements += _elements(output)

    def discard(self) -> None:
        """Drop the parts added since the last :meth:`add_step`: their step was skipped."""
        del self._pending[self._complete :]
        self._elements = sum(_elements(output) for output, _ in self._pending)

    def add_step(self, step: int, loss: torch.Tensor, size: int) -> None:
        """Add one step's loss; reduce what is pending once it has grown large."""
        self._losses.append(loss)
        self._steps.append((step, size))
        self._complete = len(self._pending)
        if self._elements >= PENDING_ELEMENTS:
            self.flush()

    def flush(self) -> None:
        """Reduce what is pending.

        Raises:
            FloatingPointError: too many consecutive steps had a non-finite loss; the message names the first.
        """
        if not self._losses:
            return
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
        self._drop_pending()
        if self.in_a_row > NONFINITE_LIMIT:
            raise FloatingPointError(
                f"the loss was not finite in {self.in_a_row} consecutive steps, first at step {self.first_nonfinite}: check "
                "the inputs of that step and terms of the loss without a gradient, or lower the learning rate"
            )

    def peek(self) -> dict[str, float]:
        """This worker's averages as of the last reduction; does not change the result of :meth:`read`."""
        return self._averages(self._sums)

    def read(self) -> dict[str, float]:
        """The averages over all workers.

        ``train_loss``; where defined ``train_accuracy`` (under mixup ``train_accuracy_mixed``, weighted by the
        coefficients); with label smoothing ``train_loss_unsmoothed``.
        """
        self.flush()
        return self._averages(all_reduce(torch.tensor(self._sums, dtype=torch.float64, device="cpu"), self.worker).tolist())

    def state(self) -> dict[str, Any]:
        """This worker's state, for a checkpoint."""
        self.flush()
        return {
            "sums": list(self._sums),
            "mixed": self.mixed,
            "nonfinite": [self.nonfinite, self.first_nonfinite, self.in_a_row],
        }

    def load_state(self, state: dict[str, Any] | None) -> None:
        """Restore a state from :meth:`state`; None if another worker continues this worker's sums."""
        self._drop_pending()
        if state is None:
            self._sums, self.mixed = [0.0] * 6, False
        else:
            self._sums, self.mixed = [float(value) for value in state["sums"]], bool(state["mixed"])
            self.nonfinite, self.first_nonfinite, self.in_a_row = state["nonfinite"]

    @staticmethod
    def merge_states(states: list[dict[str, Any]], workers: int = 1) -> dict[str, Any]:
        """Merge the states of several workers into one, for the first of ``workers``; the others start empty.

        Every worker adds the mean loss over workers with the size of the whole batch. So if the number of workers changes,
        these sums are rescaled as if the new number had added them.
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
    """Sums over an evaluation, each sample counted once over all workers."""

    def __init__(self, criterion: Criterion, worker: Worker = SINGLE_WORKER) -> None:
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
        """``loss`` (unsmoothed); where defined ``accuracy``; and ``balanced_accuracy`` if the classes are unbalanced.

        Balanced accuracy is the mean over occurring classes of the accuracy in each. Classes are unbalanced if the largest
        has more than ``BALANCED`` times the samples of the smallest that occurs.
        """
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
        """Correct predictions and samples per class, over all workers; a worker without samples knows no classes."""
        mine = self._classes
        if self.worker.size == 1:
            return mine
        width = max(all_gather(mine.shape[1], self.worker))
        return all_reduce(torch.nn.functional.pad(mine, (0, width - mine.shape[1])), self.worker)


def _score(
    criterion: Criterion, batches: list[tuple[Any, Any]], *, always_plain: bool = False
) -> list[tuple[float, float, float, float]]:
    """Per batch: the sum of the unsmoothed loss and its divisor, correct predictions and their number."""
    found = []
    for output, targets in batches:
        correct, out_of = criterion.correct(output, targets) or (0.0, 0.0)
        with_plain = always_plain or _smooths(criterion)  # last: a custom loss may modify the output in place
        plain, count = (criterion.plain(output, targets), criterion.count(targets)) if with_plain else (0.0, 0.0)
        found.append((plain, count, correct, out_of))
    return [(float(plain), float(count), float(correct), float(out_of)) for plain, count, correct, out_of in found]


def _elements(output: Any) -> int:
    return output.numel() if isinstance(output, torch.Tensor) else PENDING_ELEMENTS


def _smooths(criterion: Criterion) -> bool:
    return bool(getattr(criterion, "eps", 0))


def _joined(pending: list[tuple[Any, Any]], criterion: Criterion) -> list[tuple[Any, Any]]:
    """Concatenate batches of (N, K) outputs and (N,) targets if only accuracy is needed; others are returned unchanged."""
    if len(pending) < 2 or _smooths(criterion) or not all(_is_flat(output, targets) for output, targets in pending):
        return pending
    return [(torch.cat([output for output, _ in pending]), torch.cat([targets for _, targets in pending]))]


def _is_flat(output: Any, targets: Any) -> bool:
    return isinstance(output, torch.Tensor) and isinstance(targets, torch.Tensor) and output.ndim == 2 and targets.ndim == 1
