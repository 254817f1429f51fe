"""When a run of a race may stop, and whether another seed fits the budget: plain numbers in, plain numbers out."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CAP = 1.5  # times the arm that it is compared with: then a run is slower for certain
SAFETY = 1.1  # a seed is begun where the budget holds so many times what it is expected to take


def cap_seconds(*compared: tuple[Sequence[float | None], float | None]) -> float:
    """Seconds of training after which a run is slower for certain: 1.5 times the longest of what it is compared with.

    Args:
        compared: per arm its seconds to the target in all seeds so far (None where it did not arrive), and those of the
            run's own seed. Both count: the median alone would stop runs of a seed in which every arm is slow.

    Example:
        >>> from heptane.race.pacing import cap_seconds
        >>> cap_seconds(([10.0, 20.0, 12.0], 20.0)), cap_seconds(([10.0, None], None))
        (30.0, inf)
    """
    longest = 0.0
    for times, own in compared:
        all_times = [math.inf if seconds is None else seconds for seconds in times] or [math.inf]
        longest = max(longest, statistics.median(all_times), math.inf if own is None else own)
    return CAP * longest


def seed_fits(expected: Sequence[float], left: float, *, first: bool) -> bool:
    """Whether a seed is begun: the first one always, a later one where all its arms are expected to fit.

    Args:
        expected: seconds per arm that would run.
        left: seconds of the budget that are left.
        first: whether no seed was raced yet.
    """
    return left > 0 and (first or SAFETY * sum(expected) <= left)
