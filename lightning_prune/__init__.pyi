"""Every public name, once: the import is lazy, and type checkers read this file too."""

from .callbacks.checkpoint import SparsityCheckpoint as SparsityCheckpoint
from .callbacks.distillation import DistillationCallback as DistillationCallback
from .callbacks.monitor import SparsityMonitor as SparsityMonitor
from .callbacks.pruning import PruningCallback as PruningCallback
from .channels.adoption import adopt as adopt, shrunk_state as shrunk_state
from .channels.shrink import shrink as shrink
from .deploy.compression import FileSize as FileSize, file_size as file_size
from .deploy.executorch import (
    ExecutorchFile as ExecutorchFile,
    export_executorch as export_executorch,
)
from .deploy.latency_table import LatencyTable as LatencyTable
from .deploy.onnx import OnnxFile as OnnxFile, export_onnx as export_onnx
from .deploy.quantization import quantize_onnx as quantize_onnx
from .deploy.sparse_file import load_sparse as load_sparse, save_sparse as save_sparse
from .engine.pruner import Pruner as Pruner
from .post_training.one_shot import OneShotReport as OneShotReport, prune_once as prune_once
from .post_training.search_report import SearchReport as SearchReport
from .post_training.searching import search_sparsities as search_sparsities
from .post_training.sensitivity import measure_sensitivity as measure_sensitivity
from .post_training.sensitivity_report import Sensitivity as Sensitivity
from .post_training.statistics import reestimate_statistics as reestimate_statistics
from .recipe.allocations import (
    Allocation as Allocation,
    ERKAllocation as ERKAllocation,
    GlobalAllocation as GlobalAllocation,
    LAMPAllocation as LAMPAllocation,
    UniformAllocation as UniformAllocation,
)
from .recipe.atoms import Atoms as Atoms
from .recipe.block_pattern import BlockPattern as BlockPattern
from .recipe.branch_pattern import BranchPattern as BranchPattern
from .recipe.budgets import (
    Budget as Budget,
    BytesBudget as BytesBudget,
    LatencyBudget as LatencyBudget,
    MacsBudget as MacsBudget,
    ParameterBudget as ParameterBudget,
)
from .recipe.criteria import (
    Criterion as Criterion,
    FisherCriterion as FisherCriterion,
    GradientCriterion as GradientCriterion,
    MagnitudeCriterion as MagnitudeCriterion,
    MovementCriterion as MovementCriterion,
    RandomCriterion as RandomCriterion,
    TaylorCriterion as TaylorCriterion,
)
from .recipe.nm_pattern import NMPattern as NMPattern
from .recipe.patterns import (
    ChannelPattern as ChannelPattern,
    Pattern as Pattern,
    UnstructuredPattern as UnstructuredPattern,
)
from .recipe.penalty import GrowingPenalty as GrowingPenalty
from .recipe.phases import Phases as Phases
from .recipe.recipe import Recipe as Recipe
from .recipe.regrowth import Regrow as Regrow
from .recipe.repair import Repair as Repair
from .recipe.rewind import Rewind as Rewind
from .recipe.schedules import (
    CosineSchedule as CosineSchedule,
    ExponentialSchedule as ExponentialSchedule,
    MultiStepSchedule as MultiStepSchedule,
    OneShotSchedule as OneShotSchedule,
    PolynomialSchedule as PolynomialSchedule,
    Ramp as Ramp,
    Schedule as Schedule,
)
from .recipe.straight_through import StraightThrough as StraightThrough
from .recipe.tensor import PrunedTensor as PrunedTensor
from .recipe.tolerance import Tolerance as Tolerance
from .recipe.wanda import WandaCriterion as WandaCriterion
from .reporting.latency import Latency as Latency
from .reporting.latency_widths import measure_latency_table as measure_latency_table
from .reporting.metrics import Sparsity as Sparsity, sparsity as sparsity
from .reporting.records import LayerReport as LayerReport, Report as Report
from .reporting.report import report as report
from .reporting.sparse_kernels import (
    SparseKernels as SparseKernels,
    SparseLayer as SparseLayer,
    use_sparse_kernels as use_sparse_kernels,
)

__version__: str
