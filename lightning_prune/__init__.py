"""Prune any LightningModule gradually while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lightning_prune.allocations import (
    Allocation,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    UniformAllocation,
)
from lightning_prune.criteria import Criterion, MagnitudeCriterion, RandomCriterion
from lightning_prune.groups import Group, PrunedTensor
from lightning_prune.metrics import Sparsity
from lightning_prune.patterns import BlockPattern, NMPattern, Pattern, UnstructuredPattern
from lightning_prune.pruner import Pruner
from lightning_prune.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    Schedule,
)

if TYPE_CHECKING:
    from lightning_prune.callbacks import (
        DistillationCallback,
        PruningCallback,
        SparsityCheckpoint,
        SparsityMonitor,
    )

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "BlockPattern",
    "CosineSchedule",
    "Criterion",
    "DistillationCallback",
    "ERKAllocation",
    "ExponentialSchedule",
    "GlobalAllocation",
    "Group",
    "LAMPAllocation",
    "MagnitudeCriterion",
    "MultiStepSchedule",
    "NMPattern",
    "OneShotSchedule",
    "Pattern",
    "PolynomialSchedule",
    "PrunedTensor",
    "Pruner",
    "PruningCallback",
    "RandomCriterion",
    "Schedule",
    "Sparsity",
    "SparsityCheckpoint",
    "SparsityMonitor",
    "UniformAllocation",
    "UnstructuredPattern",
]


def __getattr__(name: str) -> Any:
    """Import Lightning only where a callback is asked for: `Pruner` does without it."""
    if name in (
        "DistillationCallback",
        "PruningCallback",
        "SparsityCheckpoint",
        "SparsityMonitor",
    ):
        return getattr(import_module("lightning_prune.callbacks"), name)
    raise AttributeError(f"module 'lightning_prune' has no attribute '{name}'")
