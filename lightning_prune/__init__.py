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
from lightning_prune.channels import ChannelGroup
from lightning_prune.criteria import (
    Criterion,
    FisherCriterion,
    GradientCriterion,
    MagnitudeCriterion,
    MovementCriterion,
    RandomCriterion,
    TaylorCriterion,
    WandaCriterion,
)
from lightning_prune.groups import Group, PrunedTensor
from lightning_prune.metrics import Sparsity
from lightning_prune.patterns import (
    BlockPattern,
    ChannelPattern,
    NMPattern,
    Pattern,
    UnstructuredPattern,
)
from lightning_prune.pruner import Pruner
from lightning_prune.regrowth import Regrow
from lightning_prune.schedules import (
    CosineSchedule,
    ExponentialSchedule,
    MultiStepSchedule,
    OneShotSchedule,
    PolynomialSchedule,
    Schedule,
)

if TYPE_CHECKING:
    from lightning_prune._files import FileSize, file_size
    from lightning_prune._latency import Latency
    from lightning_prune.callbacks import (
        DistillationCallback,
        PruningCallback,
        Rewind,
        SparsityCheckpoint,
        SparsityMonitor,
    )
    from lightning_prune.export import OnnxFile, export_onnx, quantize_onnx
    from lightning_prune.oneshot import OneShotReport, prune_once
    from lightning_prune.reporting import LayerReport, Report, report
    from lightning_prune.sensitivity import Sensitivity, measure_sensitivity
    from lightning_prune.shrinking import adopt, shrink, shrunk_state
    from lightning_prune.sparse_file import load_sparse, save_sparse

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "BlockPattern",
    "ChannelGroup",
    "ChannelPattern",
    "CosineSchedule",
    "Criterion",
    "DistillationCallback",
    "ERKAllocation",
    "ExponentialSchedule",
    "FileSize",
    "FisherCriterion",
    "GlobalAllocation",
    "GradientCriterion",
    "Group",
    "LAMPAllocation",
    "Latency",
    "LayerReport",
    "MagnitudeCriterion",
    "MovementCriterion",
    "MultiStepSchedule",
    "NMPattern",
    "OneShotReport",
    "OneShotSchedule",
    "OnnxFile",
    "Pattern",
    "PolynomialSchedule",
    "PrunedTensor",
    "Pruner",
    "PruningCallback",
    "RandomCriterion",
    "Regrow",
    "Report",
    "Rewind",
    "Schedule",
    "Sensitivity",
    "Sparsity",
    "SparsityCheckpoint",
    "SparsityMonitor",
    "TaylorCriterion",
    "UniformAllocation",
    "UnstructuredPattern",
    "WandaCriterion",
    "adopt",
    "export_onnx",
    "file_size",
    "load_sparse",
    "measure_sensitivity",
    "prune_once",
    "quantize_onnx",
    "report",
    "save_sparse",
    "shrink",
    "shrunk_state",
]

_ROOMS = {  # of what needs Lightning, or much else of torch
    "DistillationCallback": "callbacks",
    "PruningCallback": "callbacks",
    "Rewind": "callbacks",
    "SparsityCheckpoint": "callbacks",
    "SparsityMonitor": "callbacks",
    "FileSize": "_files",
    "file_size": "_files",
    "Latency": "_latency",
    "OnnxFile": "export",
    "export_onnx": "export",
    "quantize_onnx": "export",
    "OneShotReport": "oneshot",
    "prune_once": "oneshot",
    "LayerReport": "reporting",
    "Report": "reporting",
    "report": "reporting",
    "Sensitivity": "sensitivity",
    "measure_sensitivity": "sensitivity",
    "adopt": "shrinking",
    "shrink": "shrinking",
    "shrunk_state": "shrinking",
    "load_sparse": "sparse_file",
    "save_sparse": "sparse_file",
}


def __getattr__(name: str) -> Any:
    """Import Lightning only where something needs it: `Pruner` does without."""
    if name in _ROOMS:
        return getattr(import_module(f"lightning_prune.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'lightning_prune' has no attribute '{name}'")
