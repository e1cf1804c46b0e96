"""Prune any LightningModule gradually while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_prune._files import FileSize, file_size
    from lightning_prune._latency import Latency
    from lightning_prune.allocations import (
        Allocation,
        ERKAllocation,
        GlobalAllocation,
        LAMPAllocation,
        UniformAllocation,
    )
    from lightning_prune.callbacks import (
        DistillationCallback,
        PruningCallback,
        Rewind,
        SparsityCheckpoint,
        SparsityMonitor,
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
    from lightning_prune.export import OnnxFile, export_onnx, quantize_onnx
    from lightning_prune.groups import Group, PrunedTensor
    from lightning_prune.metrics import Sparsity
    from lightning_prune.oneshot import OneShotReport, prune_once
    from lightning_prune.patterns import (
        BlockPattern,
        ChannelPattern,
        NMPattern,
        Pattern,
        UnstructuredPattern,
    )
    from lightning_prune.pruner import Pruner
    from lightning_prune.regrowth import Regrow
    from lightning_prune.reporting import LayerReport, Report, report
    from lightning_prune.schedules import (
        CosineSchedule,
        ExponentialSchedule,
        MultiStepSchedule,
        OneShotSchedule,
        PolynomialSchedule,
        Schedule,
    )
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

_ROOMS = {
    "Allocation": "allocations",
    "BlockPattern": "patterns",
    "ChannelGroup": "channels",
    "ChannelPattern": "patterns",
    "CosineSchedule": "schedules",
    "Criterion": "criteria",
    "DistillationCallback": "callbacks",
    "ERKAllocation": "allocations",
    "ExponentialSchedule": "schedules",
    "FileSize": "_files",
    "FisherCriterion": "criteria",
    "GlobalAllocation": "allocations",
    "GradientCriterion": "criteria",
    "Group": "groups",
    "LAMPAllocation": "allocations",
    "Latency": "_latency",
    "LayerReport": "reporting",
    "MagnitudeCriterion": "criteria",
    "MovementCriterion": "criteria",
    "MultiStepSchedule": "schedules",
    "NMPattern": "patterns",
    "OneShotReport": "oneshot",
    "OneShotSchedule": "schedules",
    "OnnxFile": "export",
    "Pattern": "patterns",
    "PolynomialSchedule": "schedules",
    "PrunedTensor": "groups",
    "Pruner": "pruner",
    "PruningCallback": "callbacks",
    "RandomCriterion": "criteria",
    "Regrow": "regrowth",
    "Report": "reporting",
    "Rewind": "callbacks",
    "Schedule": "schedules",
    "Sensitivity": "sensitivity",
    "Sparsity": "metrics",
    "SparsityCheckpoint": "callbacks",
    "SparsityMonitor": "callbacks",
    "TaylorCriterion": "criteria",
    "UniformAllocation": "allocations",
    "UnstructuredPattern": "patterns",
    "WandaCriterion": "criteria",
    "adopt": "shrinking",
    "export_onnx": "export",
    "file_size": "_files",
    "load_sparse": "sparse_file",
    "measure_sensitivity": "sensitivity",
    "prune_once": "oneshot",
    "quantize_onnx": "export",
    "report": "reporting",
    "save_sparse": "sparse_file",
    "shrink": "shrinking",
    "shrunk_state": "shrinking",
}


def __getattr__(name: str) -> Any:
    """Import a room when something asks for it: some need Lightning, or much else of torch."""
    if name in _ROOMS:
        return getattr(import_module(f"lightning_prune.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'lightning_prune' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return also the names whose rooms have not been imported."""
    return sorted({*globals(), *__all__})
