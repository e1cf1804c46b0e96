"""The cost of bytes: the size of the file that is deployed, without writing the file."""

from torch import nn

from lightning_prune.engine.candidates import Selection
from lightning_prune.engine.compressed_bytes import CompressedFileCost
from lightning_prune.engine.costs import Cost
from lightning_prune.engine.onnx_bytes import OnnxFileCost
from lightning_prune.engine.sparse_bytes import SparseFileCost
from lightning_prune.models.calls import Call
from lightning_prune.recipe.budgets import BytesBudget


def make_bytes_cost(
    budget: BytesBudget, model: nn.Module, selection: Selection, call: Call | None
) -> Cost:
    """Return the bytes of the file of a budget, by the atoms that each group keeps.

    Args:
        budget: The budget.
        model: The model, dense.
        selection: The groups that are pruned.
        call: The arguments of ``forward``; None for the sparse file, which needs none.
    """
    if budget.file == "sparse":
        return SparseFileCost(model, selection.groups)
    assert call is not None
    if budget.file == "compressed":
        return CompressedFileCost(model, selection.groups, call)
    return OnnxFileCost(model, selection.groups, call, quantized=budget.file == "onnx-int8")
