"""ONNX files opened in ONNX Runtime."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_prune.deploy.files import need_libraries
from lightning_prune.models.calls import Call

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def open_session(path: str | Path, *, threads: int | None = None) -> "InferenceSession":
    """Open an ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: The number of threads that an operator may use; by default one for each core.

    Raises:
        ModuleNotFoundError: If ONNX Runtime is not installed.
    """
    need_libraries("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; the warnings are about optimizations
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def run_call(session: "InferenceSession", call: Call) -> list[Tensor]:
    """Return the outputs of an opened file for a call of ``forward``."""
    return run_session(session, call.tensors)


def run_session(session: "InferenceSession", inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the outputs of an opened file.

    Args:
        session: From `open_session`.
        inputs: In the order of the file's inputs, which is that of ``forward``'s arguments.

    Raises:
        ValueError: If the file has another number of inputs.
    """
    names = [node.name for node in session.get_inputs()]
    if len(names) != len(inputs):
        raise ValueError(f"need one tensor for each input of {names}, got {len(inputs)} tensors")
    arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
    outputs = session.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.from_numpy(output) for output in outputs]
