"""When a run of a race may stop early."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

CAP = 1.5  # a run this many times slower than the arm it is compared with is slower for certain
SAFETY = 1.1  # margin on the expected time of a seed


def cap_seconds(*compared: tuple[Sequence[float | None], float | None]) -> float:
    """Seconds of training after which a run is slower for certain: 1.5x the longest time it is compared with.

    Args:
        compared: per arm, its seconds to the target in all seeds so far (None: missed), and in the run's own seed. The
            median alone would stop runs of a seed in which every arm is slow.

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
