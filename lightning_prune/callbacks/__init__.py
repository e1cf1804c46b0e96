"""The Lightning floor: each file holds a callback."""

from lightning_prune.callbacks.checkpoint import SparsityCheckpoint
from lightning_prune.callbacks.distillation import DistillationCallback
from lightning_prune.callbacks.monitor import SparsityMonitor
from lightning_prune.callbacks.pruning import PruningCallback
from lightning_prune.recipe.block_pattern import BlockPattern
from lightning_prune.recipe.branch_pattern import BranchPattern
from lightning_prune.recipe.nm_pattern import NMPattern
from lightning_prune.recipe.rewind import Rewind
from lightning_prune.recipe.tolerance import Tolerance
from lightning_prune.recipe.wanda import WandaCriterion

__all__ = [
    "BlockPattern",
    "BranchPattern",
    "DistillationCallback",
    "NMPattern",
    "PruningCallback",
    "Rewind",
    "SparsityCheckpoint",
    "SparsityMonitor",
    "Tolerance",
    "WandaCriterion",
]
