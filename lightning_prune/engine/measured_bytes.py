"""The measured bytes of the file that a budget speaks of."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from lightning_prune.deploy.compression import file_size
from lightning_prune.deploy.onnx_contents import write_unchecked
from lightning_prune.deploy.quantization import quantize_onnx
from lightning_prune.deploy.sparse_file import save_sparse
from lightning_prune.models.calls import make_call
from lightning_prune.recipe.budgets import BytesBudget


def measure_bytes(
    model: nn.Module,
    budget: BytesBudget,
    example: Any = None,
    *,
    removes_channels: bool = False,
) -> int:
    """Write the file of a budget to a temporary folder, and return the bytes.

    The file is that of the command ``lightning-prune export``, but its answers are not compared
    with those of the model.

    Args:
        model: The pruned model; left as it is.
        budget: Says which file.
        example: The arguments of ``forward``; by default ``model.example_input_array``. The sparse
            file of zeros in place needs none.
        removes_channels: Whether zero channels are removed before.

    Raises:
        ValueError: If there is no example, or the model cannot be written.
        ModuleNotFoundError: If a library is missing.
    """
    if removes_channels:
        from lightning_prune.channels.shrink import shrink  # it imports tracing

        model = shrink(model, example)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        if budget.file == "sparse":
            save_sparse(model, file)
            return file.stat().st_size
        call = make_call(model, example)
        write_unchecked(model, call, file)
        if budget.file == "compressed":
            return file_size(file).zstd
        if budget.file == "onnx":
            return file.stat().st_size
        smaller = file.with_suffix(".int8")
        return quantize_onnx(file, smaller, [call], reduce_range=False).size
