"""Mixed precision: compute in 16 bits, keep the master weights in 32, and scale the loss where 16 bits would underflow.

Equation
    fp16: backward on S * loss; gradients / S before clipping and the step. A step whose gradients contain inf or NaN is
    skipped and S halves, down to a floor; after 2000 applied steps in a row S doubles. S starts at 2^16.
    bf16 has the range of fp32 and needs no loss scale.

Source
    Micikevicius et al. 2018, "Mixed Precision Training", section 3, arXiv:1710.03740.
    bf16: Kalamkar et al. 2019, arXiv:1905.12322.

Meets the loop at
    ``precision``: autocast around the forward pass, backward, and the step, which returns whether it was applied. After a
    skipped step the same batch is repeated at the smaller scale, from the same state.

Costs, and when it does not help
    A cast per weight and step. Small models gain nothing, and a machine without 16-bit units becomes much slower (fp16 on a
    CPU is refused, with the measured figure). ``dtype="auto"`` times this model where the processor computes 16 bits
    natively, and keeps 32 bits unless 16 are clearly faster; the result is cached per model and shapes in
    ``$HEPTANE_CACHE``.
    The loss is computed in fp32: on a CPU, autocast does not run softmax or layer norm in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

from heptane.base.errors import check_choice
from heptane.core.precision.step import DTYPES, MIN_SCALE, Precision, check_scale, precision


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Settings of mixed precision: 16-bit computation over 32-bit master weights."""

    dtype: str = "auto"
    """Type to compute in: bf16, fp16 (GPU only) or fp32; auto times them on this machine and model."""
    channels_last: str = "auto"
    """Channels-last memory format for images: on or off; auto times it where there are 2-D convolutions."""
    scale: float = 2.0**16
    """Initial loss scale of fp16, above 0."""
    growth_steps: int = 2000
    """Applied steps in a row after which the loss scale of fp16 doubles, at least 1."""
    floor: float = MIN_SCALE
    """Lower bound of the loss scale of fp16, above 0 and at most scale."""

    def __post_init__(self) -> None:
        check_choice("MixedPrecision.dtype", self.dtype, DTYPES)
        check_choice("MixedPrecision.channels_last", self.channels_last, ("auto", "on", "off"))
        check_scale("MixedPrecision.", self.scale, self.growth_steps, self.floor)

    def build(self, dtype: str, device: str) -> Precision:
        """The :class:`Precision` for a ``dtype`` other than "auto"."""
        return precision(dtype, device, scale=self.scale, growth_steps=self.growth_steps, floor=self.floor)
