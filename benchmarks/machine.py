"""What a benchmark says of where it ran."""

import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path


def machine(*packages: str) -> str:
    """Return the versions of packages, where they are installed, and the processor.

    Args:
        packages: Besides torch, Lightning and this one.
    """
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    versions = []
    for package in sorted({"torch", "lightning", "lightning-prune", *packages}):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions.append(f"{package} {importlib.metadata.version(package)}")
    return (
        f"Python {platform.python_version()}, {', '.join(versions)}; "
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, 1 thread"
    )
