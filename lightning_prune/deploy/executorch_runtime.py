"""ExecuTorch files opened in ExecuTorch's own runtime."""

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lightning_prune.deploy.files import need_libraries
from lightning_prune.models.calls import Call
from lightning_prune.models.errors import describe_error
from lightning_prune.models.trees import find_tensors, replace_tensors
from lightning_prune.models.undisturbed import keep_quiet

LIBRARY = EXTRA = "executorch"


def open_program(path: str | Path) -> Any:
    """Open an ExecuTorch file on the CPU.

    Raises:
        ModuleNotFoundError: If ExecuTorch is not installed.
        ValueError: If the runtime lacks an operator of the file.
    """
    need_libraries(LIBRARY, extra=EXTRA)
    try:
        with keep_quiet(warned=[".*"]):  # that the API is experimental
            from executorch.runtime import Runtime

            program = Runtime.get().load_program(Path(path).read_bytes())
            program.load_method("forward")
    except RuntimeError as error:
        raise ValueError(
            "need operators that the runtime of ExecuTorch has, got a file of others: "
            f"{describe_error(error)}"
        ) from error
    return program


def run_program(program: Any, example: Call, call: Call) -> list[Tensor]:
    """Return the tensors among the outputs of an opened file.

    Args:
        program: From `open_program`. It holds the memory that its methods use.
        example: The call that the file was traced with. The file takes the other arguments, too,
            as they were there.
        call: The call of ``forward``, for the tensors.
    """
    tensors = [tensor.detach().contiguous() for tensor in call.tensors]
    inputs = tree_leaves(replace_tensors(example, tensors))
    return find_tensors(list(program.load_method("forward").execute(inputs)))
