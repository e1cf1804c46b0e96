"""Prune any LightningModule gradually while it trains."""

from lightning_prune.allocations import (
    Allocation,
    ERKAllocation,
    GlobalAllocation,
    LAMPAllocation,
    UniformAllocation,
)
from lightning_prune.criteria import Criterion, MagnitudeCriterion, RandomCriterion
from lightning_prune.groups import Group, PrunedTensor
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

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "BlockPattern",
    "CosineSchedule",
    "Criterion",
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
    "RandomCriterion",
    "Schedule",
    "UniformAllocation",
    "UnstructuredPattern",
]
