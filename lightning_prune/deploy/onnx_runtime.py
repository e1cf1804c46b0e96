"""ONNX files opened in ONNX Runtime, and a module's arguments in the form of their inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from lightning_prune.deploy.files import need_libraries

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
    need_libraries("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3  # errors; its warnings are of optimisations
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def run(opened: "InferenceSession", inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what an opened file answers.

    Args:
        opened: By `session`.
        inputs: In the order of the file's inputs, which is that of ``forward``'s arguments.

    Raises:
        ValueError: If there are more or fewer than the file has.
    """
    names = [node.name for node in opened.get_inputs()]
    if len(names) != len(inputs):
        raise ValueError(f"need one tensor for each input of {names}, got {len(inputs)} tensors")
    arrays = [tensor.detach().cpu().numpy() for tensor in inputs]
    answers = opened.run(None, dict(zip(names, arrays, strict=True)))
    return [torch.from_numpy(answer) for answer in answers]


def tensors_of(tree: Any) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and mappings, as a file has them."""
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def with_tensors(tree: Any, tensors: Sequence[Tensor]) -> Any:
    """Return the same nest with other tensors."""
    leaves, nest = tree_flatten(tree)
    remaining = iter(tensors)
    filled = [next(remaining) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return tree_unflatten(filled, nest)


def on_cpu(tree: Any) -> Any:
    """Return the same nest with its tensors on the CPU, those of floats in float32."""

    def moved(tensor: Tensor) -> Tensor:
        floats = tensor.is_floating_point()
        return tensor.detach().to("cpu", torch.float32 if floats else tensor.dtype)

    return tree_map_only(Tensor, moved, tree)
