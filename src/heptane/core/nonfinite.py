"""Numbers that are not finite: the step is not applied, where it began is found, and the run skips it, stops or rewinds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heptane.base.events import Events
from heptane.base.lazy import torch
from heptane.base.randomness import seed_torch
from heptane.base.tree import local_part, tree_map
from heptane.core.criterion import model_output
from heptane.data.batches import Batch
from heptane.data.loaders.skipped_samples import SkippedSamples, skip_message
from heptane.model.names import without_compiled

if TYPE_CHECKING:
    from heptane.core.run import Run

SHOWN_SAMPLES = 8
REMEDY = "lower the learning rate, clip gradients (clip_norm=1.0), or look at the inputs of that step"


class Rewind(Exception):
    """Go back to the last checkpoint, and past this step."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


@dataclass
class Faults:
    """What went wrong so far, and what is done about it.

    Args:
        on_nan: skip (the step is not applied, the next batch comes), stop, rewind (to the last checkpoint, then past it), or
            ignore (nobody looks).
        limit: after so many in a row the run stops.
    """

    on_nan: str = "skip"
    limit: int = 10
    events: Events = field(default_factory=Events)
    """told of each fault, as a warning"""
    passed_over: set[int] = field(default_factory=set)
    """steps whose gradients were not finite: they are not applied, nor tried again"""
    left_out: set[int] = field(default_factory=set)
    """steps too few of whose samples can be used: they are not applied either"""
    bad: SkippedSamples = field(default_factory=SkippedSamples)
    """samples that cannot be used"""
    _first: tuple[int, str] = (-1, "")

    def __post_init__(self) -> None:
        for name, reason in self.bad.found.items():  # in the first batch, which was looked at before the run
            self.events.warn(skip_message(name, reason))
        self.bad.say = self.events.warn

    def nonfinite(self, run: Run, batch: Batch, step: int) -> None:
        """The gradients of ``step`` are not finite, and no lower loss scale helps.

        Raises:
            FloatingPointError: the run is to stop.
            Rewind: it is to go back.
        """
        first = step
        while first - 1 in self.passed_over:
            first -= 1
        if first == step:
            self._first = step, f"step {step}: the gradients are not finite; {where_it_began(run, batch, step)}"
        in_a_row = step - first + 1
        if self.on_nan == "stop" or in_a_row >= self.limit:
            began = self._first[1] if self._first[0] == first else f"step {first}: the gradients are not finite"
            many = f"{in_a_row} steps in a row, the first at " if in_a_row > 1 else ""
            fp16 = ", or compute in bf16 (mixed_precision.dtype='bf16')" if run.precision.name == "fp16" else ""
            raise FloatingPointError(f"{many}{began}: {REMEDY}{fp16}")
        self.passed_over.add(step)
        how = "passed over" if self.on_nan == "skip" else "went back to the last checkpoint, then past it"
        self.events.warn(
            f"{self._first[1]}; {how}" if first == step else f"step {step}: the gradients are not finite, {how}"
        )
        if self.on_nan == "rewind":
            raise Rewind(step)

    def applied(self, step: int) -> int:
        """How many of the first ``step`` steps were applied."""
        return step - sum(one < step for one in self.passed_over | self.left_out)

    def skips(self, step: int) -> bool:
        """Whether it is known of ``step`` that it is not applied."""
        return step in self.passed_over or step in self.left_out

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "passed_over": sorted(self.passed_over),
            "left_out": sorted(self.left_out),
            "messages": self.events.warnings,
            "bad": dict(self.bad.found),
            "first": list(self._first),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """What :meth:`state` gave."""
        self.passed_over, self.left_out = set(state["passed_over"]), set(state.get("left_out", ()))
        self.events.replace_warnings(list(state["messages"]))
        self.bad.found = dict(state["bad"])
        self._first = (int(state["first"][0]), str(state["first"][1]))

    def gone_back(self, step: int, before: dict[str, Any]) -> None:
        """After the checkpoint was loaded: what is known from the time that was undone."""
        self.passed_over |= {*before["passed_over"], step}
        self.left_out |= set(before["left_out"])
        self.events.replace_warnings(before["messages"])
        self.bad.found = before["bad"]
        self._first = (before["first"][0], before["first"][1])


def where_it_began(run: Run, batch: Batch, step: int) -> str:
    """The first layer whose output is not finite, or the last through which the gradients came back so; and the samples.

    The step's forward pass once more, from the same state and draws. Buffers are for the caller to put back.
    """
    share = run.worker.share(batch.size)
    share = share if share.stop > share.start else slice(0, 1)
    order: list[str] = []
    found: list[tuple[str, list[int]]] = []

    def look(name: str, kind: str) -> Any:
        def hook(_: Any, __: Any, output: Any) -> None:
            order.append(name)
            if not found and (rows := nonfinite_rows(output, share.stop - share.start)) is not None:
                found.append((f"it began in the output of layer {name!r} ({kind})" if name else "in the output", rows))

        return hook

    seed_torch(run.plan.seed, step, run.worker.rank)
    inputs, targets = run.mix.take(batch, share, step)
    rows = nonfinite_rows(inputs, share.stop - share.start)
    hooks = []
    try:
        for name, module in run.model.named_modules():
            if not any(True for _ in module.children()):
                hooks.append(module.register_forward_hook(look(without_compiled(name), type(module).__name__)))
        with torch.no_grad(), run.precision.autocast():
            output = run.precision.to_fp32(model_output(run.criterion, run.trained, inputs, targets))
            loss = run.criterion.mean(output, targets)
    finally:
        for hook in hooks:
            hook.remove()
    if rows is not None:  # and not before: workers may meet in the forward pass
        return f"its inputs are not{_samples(batch, share, rows)}"
    if found:
        return found[0][0] + _samples(batch, share, found[0][1])
    if not bool(loss.isfinite()):
        return f"it began in the loss{_samples(batch, share, [])}"
    bad = [
        without_compiled(name.rpartition(".")[0])
        for name, p in run.model.named_parameters()
        if p.grad is not None and nonfinite_rows(local_part(p.grad), 0) is not None
    ]
    last = max(bad, key=lambda name: order.index(name) if name in order else -1, default="")
    return f"it began on the way back, at layer {last!r}{_samples(batch, share, [])}"


def nonfinite_rows(data: Any, size: int) -> list[int] | None:
    """Which of ``size`` rows hold NaN or infinity, or an empty list where rows cannot be told; None where all is finite."""
    bad: list[torch.Tensor] = []

    def look(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor
        if not bool(tensor.isfinite().all()):
            bad.append(tensor)
        return tensor

    tree_map(look, data)
    if not bad:
        return None
    if bad[0].ndim == 0 or len(bad[0]) != size:
        return []
    rows: list[int] = (~bad[0].isfinite()).reshape(size, -1).any(1).nonzero().flatten().tolist()
    return rows if len(rows) < size else []


def _samples(batch: Batch, share: slice, rows: list[int]) -> str:
    """``; samples 5, 7``: those at fault, or of the whole batch where nobody knows which."""
    known = batch.indices
    if known is None:
        at = ", ".join(str(share.start + row) for row in rows[:SHOWN_SAMPLES])
        return f"; at {at} of its batch" if rows else ""
    chosen = [known[share.start + row] for row in rows] or known
    shown = ", ".join(map(str, chosen[:SHOWN_SAMPLES])) + (", ..." if len(chosen) > SHOWN_SAMPLES else "")
    return f"; sample{'s' if len(chosen) > 1 else ''} {shown}"
