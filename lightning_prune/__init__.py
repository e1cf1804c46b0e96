"""Prune any LightningModule gradually while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_prune.callbacks import (
        DistillationCallback,
        PruningCallback,
        Rewind,
        SparsityCheckpoint,
        SparsityMonitor,
    )
    from lightning_prune.channels.shrink import adopt, shrink, shrunk_state
    from lightning_prune.deploy.compression import FileSize, file_size
    from lightning_prune.deploy.onnx import OnnxFile, export_onnx
    from lightning_prune.deploy.quantization import quantize_onnx
    from lightning_prune.deploy.sparse_file import load_sparse, save_sparse
    from lightning_prune.engine.channel_groups import ChannelGroup
    from lightning_prune.engine.groups import Group
    from lightning_prune.engine.pruner import Pruner
    from lightning_prune.post_training.one_shot import OneShotReport, prune_once
    from lightning_prune.post_training.sensitivity import Sensitivity, measure_sensitivity
    from lightning_prune.recipe.allocations import (
        Allocation,
        ERKAllocation,
        GlobalAllocation,
        LAMPAllocation,
        UniformAllocation,
    )
    from lightning_prune.recipe.criteria import (
        Criterion,
        FisherCriterion,
        GradientCriterion,
        MagnitudeCriterion,
        MovementCriterion,
        RandomCriterion,
        TaylorCriterion,
        WandaCriterion,
    )
    from lightning_prune.recipe.patterns import (
        BlockPattern,
        ChannelPattern,
        NMPattern,
        Pattern,
        UnstructuredPattern,
    )
    from lightning_prune.recipe.regrowth import Regrow
    from lightning_prune.recipe.schedules import (
        CosineSchedule,
        ExponentialSchedule,
        MultiStepSchedule,
        OneShotSchedule,
        PolynomialSchedule,
        Schedule,
    )
    from lightning_prune.recipe.tensor import PrunedTensor
    from lightning_prune.reporting.latency import Latency
    from lightning_prune.reporting.metrics import Sparsity
    from lightning_prune.reporting.records import LayerReport, Report
    from lightning_prune.reporting.report import report

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
    "Allocation": "recipe.allocations",
    "BlockPattern": "recipe.patterns",
    "ChannelGroup": "engine.channel_groups",
    "ChannelPattern": "recipe.patterns",
    "CosineSchedule": "recipe.schedules",
    "Criterion": "recipe.criteria",
    "DistillationCallback": "callbacks",
    "ERKAllocation": "recipe.allocations",
    "ExponentialSchedule": "recipe.schedules",
    "FileSize": "deploy.compression",
    "FisherCriterion": "recipe.criteria",
    "GlobalAllocation": "recipe.allocations",
    "GradientCriterion": "recipe.criteria",
    "Group": "engine.groups",
    "LAMPAllocation": "recipe.allocations",
    "Latency": "reporting.latency",
    "LayerReport": "reporting.records",
    "MagnitudeCriterion": "recipe.criteria",
    "MovementCriterion": "recipe.criteria",
    "MultiStepSchedule": "recipe.schedules",
    "NMPattern": "recipe.patterns",
    "OneShotReport": "post_training.one_shot",
    "OneShotSchedule": "recipe.schedules",
    "OnnxFile": "deploy.onnx",
    "Pattern": "recipe.patterns",
    "PolynomialSchedule": "recipe.schedules",
    "PrunedTensor": "engine.groups",
    "Pruner": "engine.pruner",
    "PruningCallback": "callbacks",
    "RandomCriterion": "recipe.criteria",
    "Regrow": "recipe.regrowth",
    "Report": "reporting.records",
    "Rewind": "callbacks",
    "Schedule": "recipe.schedules",
    "Sensitivity": "post_training.sensitivity",
    "Sparsity": "reporting.metrics",
    "SparsityCheckpoint": "callbacks",
    "SparsityMonitor": "callbacks",
    "TaylorCriterion": "recipe.criteria",
    "UniformAllocation": "recipe.allocations",
    "UnstructuredPattern": "recipe.patterns",
    "WandaCriterion": "recipe.criteria",
    "adopt": "channels.shrink",
    "export_onnx": "deploy.onnx",
    "file_size": "deploy.compression",
    "load_sparse": "deploy.sparse_file",
    "measure_sensitivity": "post_training.sensitivity",
    "prune_once": "post_training.one_shot",
    "quantize_onnx": "deploy.quantization",
    "report": "reporting.report",
    "save_sparse": "deploy.sparse_file",
    "shrink": "channels.shrink",
    "shrunk_state": "channels.shrink",
}


def __getattr__(name: str) -> Any:
    """Import a room when something asks for it: some need Lightning, or much else of torch."""
    if name in _ROOMS:
        return getattr(import_module(f"lightning_prune.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'lightning_prune' has no attribute '{name}'")


def __dir__() -> list[str]:
    """Return also the names whose rooms have not been imported."""
    return sorted({*globals(), *__all__})
