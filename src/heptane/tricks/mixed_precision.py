"""Mixed precision: compute in 16 bits, keep the master weights in 32, scale the loss where 16 bits are too few.

Equation
    fp16: backward on S * loss; gradients / S before clipping and stepping. A step whose gradients hold inf or NaN is not
    applied and S halves, not below a floor; after 2000 applied steps in a row S doubles. S starts at 2^16.
    bf16 has the range of fp32 and needs no S.

Source
    Micikevicius et al. 2018, "Mixed Precision Training", section 3, arXiv:1710.03740.
    bf16: Kalamkar et al. 2019, arXiv:1905.12322.

Meets the loop at
    ``precision``: autocast around the forward pass, backward, and the step, which says whether it was applied. A skipped
    step advances nothing: the same batch is tried again at the smaller scale, from the same state.

Costs, and when it does not help
    A cast per weight and step; small models gain nothing, and a machine without 16-bit units loses much (fp16 on a CPU is
    refused with the figure). ``dtype="auto"`` measures this model where the processor computes 16 bits, and keeps 32 bits
    where 16 do not pay; the machine keeps the outcome for the model and its shapes, in ``$HEPTANE_CACHE``.
    The loss is computed in fp32: on a CPU neither softmax nor layer norm is on autocast's fp32 list.
"""

from __future__ import annotations

from dataclasses import dataclass

from heptane.base.errors import check_choice
from heptane.core.precision.step import DTYPES, Precision, check_scale, precision


@dataclass(frozen=True, kw_only=True)
class MixedPrecision:
    """Trick 7: 16-bit compute over 32-bit master weights. ``MixedPrecision(dtype="auto")`` fills the slot ``precision``."""

    dtype: str = "auto"
    """Type to compute in: bf16, fp16 (GPU only) or fp32; auto measures on this machine and model."""
    channels_last: str = "auto"
    """Store images channels last: on or off; auto measures it where there are 2-D convolutions."""
    scale: float = 2.0**16
    """First loss scale of fp16, above 0."""
    growth_steps: int = 2000
    """Applied steps in a row after which fp16's scale doubles, at least 1."""
    floor: float = 1.0
    """Least loss scale of fp16, which is not halved below it, above 0 and at most scale."""

    def __post_init__(self) -> None:
        check_choice("MixedPrecision.dtype", self.dtype, DTYPES)
        check_choice("MixedPrecision.channels_last", self.channels_last, ("auto", "on", "off"))
        check_scale("MixedPrecision.", self.scale, self.growth_steps, self.floor)

    def build(self, dtype: str, device: str) -> Precision:
        """The slot's filler for a dtype that is no longer "auto"."""
        return precision(dtype, device, scale=self.scale, growth_steps=self.growth_steps, floor=self.floor)
