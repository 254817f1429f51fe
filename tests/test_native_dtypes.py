"""Which processors compute bf16, from what PyTorch reports."""

from __future__ import annotations

import platform
from typing import Any

import pytest
import torch

from heptane.core.precision import native_dtypes


def says(monkeypatch: pytest.MonkeyPatch, machine: str, *yes: str, mkldnn: bool = True) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: mkldnn)
    monkeypatch.setattr(native_dtypes, "_says_yes", lambda owner, name: name in yes)


CASES: list[tuple[str, tuple[str, ...], bool]] = [
    ("x86_64", ("_is_avx512_bf16_supported",), True),
    ("AMD64", ("_is_amx_tile_supported",), True),
    ("x86_64", ("_is_avx512_supported", "_is_mkldnn_bf16_supported"), False),  # AVX-512 without units: emulated
    ("x86_64", (), False),
    ("aarch64", ("_is_mkldnn_bf16_supported",), True),
    ("arm64", (), False),
    ("ppc64le", (), False),
]


@pytest.mark.parametrize(("machine", "yes", "expected"), CASES)
def test_by_architecture(machine: str, yes: tuple[str, ...], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, machine, *yes)
    assert native_dtypes.computes_bf16() is expected
    says(monkeypatch, machine, *yes, mkldnn=False)
    assert not native_dtypes.computes_bf16()


def test_what_a_version_of_pytorch_does_not_know_is_a_no() -> None:
    class Knows:
        def refuses(self) -> Any:
            raise RuntimeError

        def yes(self) -> Any:
            return 1

    assert [native_dtypes._says_yes(Knows(), name) for name in ("yes", "refuses", "nothing")] == [True, False, False]


def test_this_machine_agrees_with_its_flags() -> None:
    flags = native_dtypes.describe(torch.device("cpu"))["flags"]
    if platform.machine() == "x86_64" and flags:
        assert native_dtypes.computes_bf16() == (flags["avx512_bf16"] or flags["amx"])


def test_a_description_follows_the_threads() -> None:
    before = torch.get_num_threads()
    first = native_dtypes.describe(torch.device("cpu"))
    torch.set_num_threads(before + 1)
    try:
        assert native_dtypes.describe(torch.device("cpu")) == {**first, "threads": before + 1}
    finally:
        torch.set_num_threads(before)
