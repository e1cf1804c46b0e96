"""ONNX files opened in ONNX Runtime, in one place."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from onnxruntime import InferenceSession


def session(path: str | Path, *, threads: int | None = None) -> "InferenceSession":
    """Open an ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.
        threads: How many threads an operator may use; by default one a core.

    Raises:
        ModuleNotFoundError: If ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "need onnxruntime to run an ONNX file: pip install 'lightning-prune[export]'"
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; its warnings are of optimisations
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def run(opened: "InferenceSession", inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what an opened file answers.

    Args:
        opened: By `session`.
        inputs: In the order of the file's inputs, which is that of ``forward``'s arguments.
    """
    names = [node.name for node in opened.get_inputs()]
    if len(names) != len(inputs):
        raise ValueError(f"need the file's inputs {names}, got {len(inputs)} tensors")
    arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
    answers = opened.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.from_numpy(answer) for answer in answers]
