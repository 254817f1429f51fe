"""One-time costs are paid before the training clock starts, once, without side effects."""

from __future__ import annotations

import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tests.helpers import mlp, sgd

import heptane as hp
from heptane.model.warm_up import warm_up

DATA = torch.randn(16, 64), torch.randint(0, 4, (16,))


def test_what_is_slow_once_is_on_the_wall_clock_only(monkeypatch: pytest.MonkeyPatch) -> None:
    import heptane.assemble  # noqa: F401

    left = [0.6]
    monkeypatch.setattr(sys.modules["heptane.assemble"], "warm_up", lambda device: time.sleep(left.pop() if left else 0))
    results = [hp.fit(mlp(), DATA, epochs=1, batch_size=8, optimizer=sgd).seconds for _ in range(3)]
    assert results[0]["wall"] - results[0]["train"] >= 0.6
    assert all(seconds["wall"] - seconds["train"] < 0.5 for seconds in results[1:])


def test_it_is_done_once_and_leaves_no_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up.cache_clear()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state()), torch.is_grad_enabled()
    with torch.no_grad():
        warm_up("cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state()), torch.is_grad_enabled()) == before[1:]
    monkeypatch.setattr("heptane.model.warm_up._step", lambda *_: pytest.fail("again"))
    warm_up("cpu")


def test_other_defaults_of_the_users_do_not_stop_it() -> None:
    warm_up.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode():
            warm_up("cpu")
    finally:
        torch.set_default_dtype(torch.float32)


def test_what_the_first_optimizer_loads_is_loaded_before_the_clock_starts() -> None:
    code = """
import sys, torch, heptane as hp
from heptane.base.clock import Clock
loaded = []
class Watched(Clock):
    def resume(self):
        loaded.append("torch._dynamo" in sys.modules)
        super().resume()
from heptane.assemble import assemble
data = torch.randn(8, 4), torch.randint(0, 2, (8,))
from heptane.core.fit_options import Plan
plan = Plan(optimizer=torch.optim.AdamW, epochs=1, batch_size=4)
assemble(torch.nn.Linear(4, 2), data, plan, clock=Watched())
print(loaded[0])
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout == "True\n"
