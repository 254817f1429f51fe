"""Running averages that do not make training wait: outputs are kept a while, then reduced together."""

from __future__ import annotations

from typing import Any

from heptane._lazy import torch
from heptane.criterion import Criterion
from heptane.tricks.data_parallel import ALONE, Worker, all_sum
from heptane.tricks.mixup import MixedTargets

PENDING_ELEMENTS = 1 << 16  # of outputs kept before they are reduced: about 100 steps of 64 x 10, one step of a big model
NONFINITE_LIMIT = 20  # steps with a loss that is not finite, after which training is stopped


class TrainMeter:
    """Loss and accuracy since the last :meth:`reset`; ``add`` only stores references, so no step waits for it."""

    def __init__(self, criterion: Criterion, worker: Worker = ALONE) -> None:
        self.criterion, self.worker = criterion, worker
        self.nonfinite, self.first_nonfinite = 0, -1
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
        self._sums = torch.zeros(6, dtype=torch.float64)

    def add(self, output: Any, targets: Any) -> None:
        """Keep one part's output and targets for the accuracy and the unsmoothed loss."""
        output = output.detach() if isinstance(output, torch.Tensor) else output
        self._pending.append((output, targets))
        self._elements += _elements(output)

    def discard(self) -> None:
        """Forget the parts added since the last :meth:`add_step`: their step was not applied and is tried again."""
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
            FloatingPointError: too many steps had a loss that is not finite; the message names the first.
        """
        with torch.no_grad():
            losses = torch.stack(self._losses).cpu().double()
            scores = _score(self.criterion, _joined(self._pending))
        sizes = torch.tensor([size for _, size in self._steps], dtype=torch.float64)
        finite = losses.isfinite()
        sums = [torch.dot(losses.where(finite, 0.0), sizes * finite), (sizes * finite).sum(), *scores]
        self.mixed |= any(isinstance(targets, MixedTargets) for _, targets in self._pending)
        self._sums += _vector(sums)
        bad = (~finite).nonzero().flatten().tolist()
        if bad and self.first_nonfinite < 0:
            self.first_nonfinite = self._steps[bad[0]][0]
        self.nonfinite += len(bad)
        self._pending, self._losses, self._steps, self._elements, self._complete = [], [], [], 0, 0
        if self.nonfinite > NONFINITE_LIMIT:
            raise FloatingPointError(
                f"the loss was not finite in {self.nonfinite} steps, first at step {self.first_nonfinite}: "
                "lower the learning rate, clip gradients (clip_norm=1.0), or look at the inputs of that step"
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
        return self._averages(all_sum(self._sums.clone(), self.worker))

    def _averages(self, sums: torch.Tensor) -> dict[str, float]:
        loss, size, plain, count, correct, out_of = sums.tolist()
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
        self._sums = torch.zeros(4, dtype=torch.float64)

    def add(self, output: Any, targets: Any) -> None:
        """Add one batch."""
        self._sums += _vector(_score(self.criterion, [(output, targets)], always_plain=True))

    def read(self) -> dict[str, float]:
        """``loss`` (unsmoothed) and, where it has a meaning, ``accuracy``."""
        plain, count, correct, out_of = all_sum(self._sums.clone(), self.worker).tolist()
        found = {"loss": plain / count if count else float("nan")}
        if out_of:
            found["accuracy"] = correct / out_of
        return found


def _score(criterion: Criterion, batches: list[tuple[Any, Any]], *, always_plain: bool = False) -> list[Any]:
    plain: Any = 0.0
    count: Any = 0.0
    correct: Any = 0.0
    out_of: Any = 0.0
    for output, targets in batches:
        if always_plain or _smooths(criterion):
            plain, count = plain + criterion.plain(output, targets), count + criterion.count(targets)
        hits = criterion.correct(output, targets)
        if hits is not None:
            correct, out_of = correct + hits[0], out_of + hits[1]
    return [plain, count, correct, out_of]


def _vector(values: list[Any]) -> torch.Tensor:
    """Numbers and scalar tensors of any device as one float64 vector on the CPU."""
    plain = [value.detach().cpu().double().item() if isinstance(value, torch.Tensor) else float(value) for value in values]
    return torch.tensor(plain, dtype=torch.float64)


def _elements(output: Any) -> int:
    return output.numel() if isinstance(output, torch.Tensor) else PENDING_ELEMENTS


def _smooths(criterion: Criterion) -> bool:
    return bool(getattr(criterion, "eps", 0))


def _joined(pending: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Several batches of (N, K) outputs and (N,) targets as one; anything else as it is."""
    if len(pending) < 2 or not all(_is_flat(output, targets) for output, targets in pending):
        return pending
    return [(torch.cat([output for output, _ in pending]), torch.cat([targets for _, targets in pending]))]


def _is_flat(output: Any, targets: Any) -> bool:
    return isinstance(output, torch.Tensor) and isinstance(targets, torch.Tensor) and output.ndim == 2 and targets.ndim == 1
