"""Kernels of Triton on a CPU, by its interpreter."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def interpreted_kernels() -> Iterator[None]:
    """Let Triton interpret all kernels inside of the block; skip the test without Triton.

    Triton reads where it is imported whether its interpreter runs the kernels. Other packages may
    have imported it already, so it is imported anew, but for its compiled library.
    """
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    before = {name: sys.modules.pop(name) for name in _find_modules()}
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setenv("TRITON_INTERPRET", "1")
            yield
    finally:
        for name in _find_modules():
            del sys.modules[name]
        sys.modules.update(before)


def _find_modules() -> list[str]:
    """Return the modules of Triton and those with kernels, as far as they are imported."""
    return [
        name
        for name in sys.modules
        if (name.partition(".")[0] == "triton" and not name.startswith("triton._C"))
        or name.startswith("lightning_prune.tensors.fused_")
    ]
