"""Threads for work that is done row by row."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from threading import Barrier

from heptane.base.lazy import torch


def by_parts(work: Callable[[slice], object], count: int) -> None:
    """Call ``work`` with slices that together cover ``count`` rows, in as many threads as PyTorch uses, at the same time.

    Inside, PyTorch uses one thread: with its own threads each small operation would wait for all of them, which takes
    milliseconds on a busy machine.
    """
    threads = min(torch.get_num_threads(), count)
    if threads < 2:
        work(slice(0, count))
        return
    bounds = [count * part // threads for part in range(threads + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    for _ in _pool(torch.get_num_threads()).map(work, parts):
        pass


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that have all started, each with one thread of PyTorch's own."""
    started = Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # PyTorch sets a thread's number when it is first needed
        torch.set_num_threads(1)  # of this thread, and of threads that start later
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="heptane-part")
    for future in [pool.submit(start) for _ in range(threads)]:
        future.result()
    torch.set_num_threads(threads)  # of threads that start later
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads
