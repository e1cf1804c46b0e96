"""What a test expects from an older torch."""

import re
from importlib.metadata import PackageNotFoundError, version

import pytest
from packaging.version import Version

from lightning_prune.models.torch_floors import TorchFloor

_RAISED = ValueError, AssertionError  # the latter for an error in another process


def needs(floor: TorchFloor) -> pytest.MarkDecorator:
    """Skip a test where torch is too old for ``floor``."""
    return pytest.mark.skipif(not floor.is_met, reason=floor.refusal)


def needs_package(name: str, least: str) -> pytest.MarkDecorator:
    """Skip a test where a package is missing or older than ``least``."""
    try:
        found = version(name)
    except PackageNotFoundError:
        found = "0"
    is_old = Version(found) < Version(least)
    return pytest.mark.skipif(is_old, reason=f"needs {name} {least}, got {found}")


def refused_before(floor: TorchFloor) -> pytest.MarkDecorator:
    """Mark a test that must fail with the refusal of ``floor`` where torch is too old."""
    refusal = pytest.RaisesExc(_RAISED, match=re.escape(floor.refusal))
    return pytest.mark.xfail(not floor.is_met, raises=refusal, reason=floor.refusal, strict=True)
