"""Mixup: train on convex combinations of pairs of samples and of their targets; CutMix pastes a box instead.

Equation
    x' = lam x_i + (1 - lam) x_j,  y' = lam y_i + (1 - lam) y_j,  lam ~ Beta(alpha, alpha), j a permutation of the batch.
    CutMix: x' is x_i with a box of x_j pasted in, of area 1 - lam; lam is then recomputed from the box in whole pixels.

Source
    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", section 2, arXiv:1710.09412.
    Yun et al. 2019, "CutMix", section 3.1, arXiv:1905.04899.
    Hidden features: Verma et al. 2019, "Manifold Mixup", section 2, arXiv:1806.05236.

Meets the loop at
    ``mix``. Pairs are drawn for the global batch, so neither workers nor micro-batches change them.

Costs, and when it does not help
    A random draw and a blend per step. It is a regularizer: it pays on long schedules that overfit, and slows learning on
    runs of a few epochs, where no speed record uses it. The authors lower weight decay with it (1e-4 instead of 5e-4 on
    CIFAR).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from heptane.base.errors import InputError, check_bool, check_range
from heptane.base.lazy import np, torch
from heptane.base.randomness import generator
from heptane.base.tree import first_tensor, select_rows
from heptane.core.custom_losses import CustomLoss, ModelLoss
from heptane.core.hidden_blend import HiddenBlend, pair_inputs
from heptane.core.losses import Criterion
from heptane.core.run import BatchMixer
from heptane.core.targets import MixedTargets, blend

if TYPE_CHECKING:
    from heptane.data.batches import Batch


_NO_IMAGES = "Mixup.cutmix_alpha needs images of shape (N, C, H, W): for other inputs set cutmix_alpha=0"


@dataclass(frozen=True)
class Blend:
    """The random draw for one global batch: ``lam`` (N,) float32, ``partner`` (N,) int64, and a CutMix box in pixels or
    None."""

    lam: torch.Tensor
    partner: torch.Tensor
    box: tuple[int, int, int, int] | None = None


def mixup_batch(
    inputs: torch.Tensor, targets: torch.Tensor, lam: float | torch.Tensor, permutation: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blend each sample and its target with a partner: lam * x + (1 - lam) * x[permutation].

    Args:
        inputs: (N, ...), floating point.
        targets: (N, ...), floating point: soft, multi-label or regression targets. Convert integer classes to one-hot first,
            with ``hp.smooth_labels(classes, 0.0, num_classes)``.
        lam: weight of the sample itself, in [0, 1]: a number, or a tensor of shape (N,).
        permutation: (N,) integers, the partner of each sample.

    Returns:
        The blended inputs and targets, in the shapes given.

    Raises:
        InputError: integer inputs or targets, or ``lam`` outside [0, 1].

    Example:
        >>> mixup_batch(torch.tensor([[0.0], [4.0]]), torch.eye(2), 0.75, torch.tensor([1, 0]))
        (tensor([[1.],
                [3.]]), tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]]))

    Source: Zhang et al. 2018, arXiv:1710.09412, section 2.
    """
    if not targets.is_floating_point():
        raise InputError(
            f"targets of type {targets.dtype} cannot be blended: "
            "make them one-hot, hp.smooth_labels(targets, 0.0, num_classes)"
        )
    if not inputs.is_floating_point():
        raise InputError(f"inputs of type {inputs.dtype} cannot be blended: use inputs.float()")
    if not isinstance(lam, torch.Tensor):
        lam = float(lam)
        check_range("lam", lam, 0, 1)
    return blend(inputs, inputs[permutation], lam), blend(targets, targets[permutation], lam)


def paste(first: torch.Tensor, second: torch.Tensor, box: tuple[int, int, int, int]) -> torch.Tensor:
    """CutMix: ``first`` (N, C, H, W) with the box (top, bottom, left, right), in pixels, copied from ``second``."""
    top, bottom, left, right = box
    out = first.clone()
    out[:, :, top:bottom, left:right] = second[:, :, top:bottom, left:right]
    return out


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """Settings of mixup and CutMix."""

    alpha: float = 0.2
    """Mixup draws lam ~ Beta(alpha, alpha), at least 0; 0 turns mixup off."""
    cutmix_alpha: float = 0.0
    """CutMix draws lam ~ Beta(alpha, alpha), at least 0; 0 turns CutMix off."""
    cutmix_probability: float = 0.5
    """Fraction of batches that use CutMix when both are on, in [0, 1]."""
    per_sample: bool = False
    """Draw lam per sample instead of per batch (mixup only: a CutMix box is drawn per batch)."""
    layer: str | None = None
    """Name of the module whose output is blended, such as an embedding; None: the input."""
    off_last_epochs: float = 0.0
    """Final epochs that train without blending, at least 0."""

    def __post_init__(self) -> None:
        check_bool("Mixup.per_sample", self.per_sample)
        if self.layer is not None and (not isinstance(self.layer, str) or not self.layer):
            raise InputError(f"Mixup.layer={self.layer!r}: expected the name of a module, or None for the inputs")
        check_range("Mixup.alpha", self.alpha, 0)
        check_range("Mixup.cutmix_alpha", self.cutmix_alpha, 0)
        check_range("Mixup.cutmix_probability", self.cutmix_probability, 0, 1)
        check_range("Mixup.off_last_epochs", self.off_last_epochs, 0)
        if not self.alpha and not self.cutmix_alpha:
            raise InputError("Mixup.alpha=0 and Mixup.cutmix_alpha=0 turn both off: set one above 0, or leave Mixup out")
        if self.layer and self.cutmix_alpha:
            raise InputError(f"Mixup.layer={self.layer!r} excludes CutMix, which cuts boxes from images; set cutmix_alpha=0")

    def draw(self, seed: int, step: int, batch_size: int, image_size: tuple[int, int] | None = None) -> Blend:
        """The pairs and weights of one step, a pure function of the arguments.

        Args:
            seed, step: determine the draw.
            batch_size: N, of the global batch.
            image_size: (H, W), required for CutMix.
        """
        rng = generator(seed, "mixup", step)
        cutmix = self.cutmix_alpha > 0 and (not self.alpha or rng.random() < self.cutmix_probability)
        partner = torch.from_numpy(rng.permutation(batch_size))
        alpha = self.cutmix_alpha if cutmix else self.alpha
        if not cutmix:
            lam = rng.beta(alpha, alpha, batch_size if self.per_sample else None)
            return Blend(torch.from_numpy(np.broadcast_to(lam, (batch_size,)).astype(np.float32)), partner)
        if image_size is None:
            raise InputError(_NO_IMAGES)
        height, width = image_size
        side = math.sqrt(1 - rng.beta(alpha, alpha)) / 2
        y, x = rng.random(2)
        top, bottom = round(max(0.0, y - side) * height), round(min(1.0, y + side) * height)
        left, right = round(max(0.0, x - side) * width), round(min(1.0, x + side) * width)
        lam = 1 - (bottom - top) * (right - left) / (height * width)
        return Blend(torch.full((batch_size,), lam, dtype=torch.float32, device="cpu"), partner, (top, bottom, left, right))

    def check_criterion(self, criterion: Criterion, targets: Any) -> None:
        """Refuse losses that cannot take blended targets.

        Raises:
            InputError: with the reason.
        """
        own = isinstance(criterion, CustomLoss)
        if self.per_sample and own and not first_tensor(targets).is_floating_point():
            raise InputError("Mixup.per_sample=True does not support a custom loss with integer targets: set it to False")
        if isinstance(criterion, ModelLoss):
            raise InputError(
                "mixup with loss='model': the model's own loss takes no blended targets; leave loss out, so that it is "
                "computed from the model's logits, or turn mixup off"
            )

    def fill(self, model: torch.nn.Module, seed: int, total_steps: int, steps_per_epoch: int, sample: Any = None) -> Mixer:
        """The :class:`Mixer` of a run.

        Args:
            model: receives a hook where ``layer`` is set.
            seed, total_steps, steps_per_epoch: of the run.
            sample: inputs of the model, from which it is found whether masks among them act before or after ``layer``.
        """
        hidden = HiddenBlend(model, self.layer, sample) if self.layer else None
        mixer = Mixer(self, seed, total_steps - round(self.off_last_epochs * steps_per_epoch), hidden)
        if hidden:
            weakref.finalize(mixer, hidden.handle.remove)  # the model outlives the run and must not keep the hook
        return mixer


class Mixer(BatchMixer):
    """Fills the slot ``mix``: part of a global batch, blended with its partners."""

    blends = True

    def __init__(self, trick: Mixup, seed: int, stop: int, hidden: HiddenBlend | None) -> None:
        self.trick, self.seed, self.stop, self.hidden = trick, seed, stop, hidden
        self.layer = trick.layer
        self._drawn: tuple[int, Blend] | None = None

    def take(self, batch: Batch, part: slice, step: int) -> tuple[Any, Any]:
        """The slice ``part`` of ``batch``, blended before step ``stop`` and as it is from then on."""
        inputs, targets = batch.take(part)
        if self.hidden:
            self.hidden.check_used()
        if step >= self.stop:
            return inputs, targets
        self._check(inputs, targets)
        images = isinstance(inputs, torch.Tensor) and inputs.ndim == 4
        if self._drawn is None or self._drawn[0] != step:
            size = (inputs.shape[2], inputs.shape[3]) if images else None
            self._drawn = step, self.trick.draw(self.seed, step, batch.size, size)
        draw = self._drawn[1]
        partner, lam = draw.partner[part], draw.lam[part]
        whole = len(targets) == batch.size
        partner_inputs, partner_targets = select_rows((inputs, targets), partner) if whole else batch.take(partner)
        if self.hidden:
            self.hidden.pending = (lam, partner if whole else None)
            inputs = pair_inputs(inputs, partner_inputs, whole, self.hidden.masks_wait)
        elif draw.box:
            inputs = paste(inputs, partner_inputs, draw.box)
        else:
            inputs = blend(inputs, partner_inputs, lam)
        return inputs, MixedTargets(targets, partner_targets, lam)

    def targets(self, batch: Batch, step: int) -> Any:
        """The blended targets of the whole global batch, from which the criterion counts its divisor."""
        targets = batch.targets()
        if step >= self.stop:
            return targets
        assert self._drawn is not None
        assert self._drawn[0] == step, "take() comes first: it knows the size of the images"
        draw = self._drawn[1]
        return MixedTargets(targets, targets[draw.partner], draw.lam)

    def _check(self, inputs: Any, targets: Any) -> None:
        """Refuse at the first step what would fail only in some later draws."""
        if not isinstance(targets, torch.Tensor):
            found = type(targets).__name__
            raise InputError(f"mixup needs targets that are one tensor, got {found}; turn mixup off for this model")
        if not isinstance(inputs, torch.Tensor):
            if self.hidden and isinstance(inputs, MutableMapping):
                return
            raise InputError(
                f"mixup of inputs of type {type(inputs).__name__}: expected one tensor, or a dict together with "
                "Mixup.layer; or turn mixup off for this model"
            )
        cuts = self.trick.cutmix_alpha > 0 and not (self.trick.alpha and self.trick.cutmix_probability == 0)
        if cuts and inputs.ndim != 4:
            raise InputError(_NO_IMAGES)
        blends = self.trick.alpha > 0 and not (cuts and self.trick.cutmix_probability == 1)
        if blends and not self.hidden and not inputs.is_floating_point():
            raise InputError(
                f"mixup of inputs of type {inputs.dtype}: integers (tokens) cannot be blended; "
                "set Mixup.layer to the name of the embedding, or turn mixup off"
            )
