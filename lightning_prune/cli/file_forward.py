"""A file to deploy in the place of a model's ``forward``."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_prune.callbacks.namespace import LightningModule
from lightning_prune.models.calls import Call, bind_call, make_call
from lightning_prune.models.trees import find_tensors, map_tensors, move_to_cpu, replace_tensors

Run: TypeAlias = Callable[[Call], Sequence[Tensor]]


class MisfitError(ValueError):
    """An input with a shape that a file does not take."""


class FileForward:
    """Runs a file in the place of a model's ``forward``, and returns the same structure.

    Args:
        model: The model.
        run: Gives a call to the file, and returns the tensors among the outputs.
        shapes: The sizes that the file takes for each tensor; a name for any size.
        example: The arguments of ``forward``, for the structure of the outputs.
    """

    def __init__(
        self, model: LightningModule, run: Run, shapes: Sequence[Sequence[int | str]], example: Any
    ) -> None:
        self.model, self.run, self.shapes = model, run, shapes
        copied = deepcopy(model).cpu().float().eval()
        call = move_to_cpu(make_call(copied, example))
        with torch.no_grad():
            self.template = copied(*call.arguments, **call.keywords)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the file.

        Raises:
            MisfitError: If the file does not take an input.
        """
        call = bind_call(self.model, args, kwargs)
        for shape, tensor in zip(self.shapes, call.tensors, strict=True):
            if len(shape) != tensor.dim() or any(
                isinstance(size, int) and size != found
                for size, found in zip(shape, tensor.shape, strict=True)
            ):
                raise MisfitError(
                    f"validation calls forward with a shape of {list(tensor.shape)}, and the file "
                    f"takes {list(shape)}"
                )
        answers = self.run(move_to_cpu(call))
        device = call.tensors[0].device
        return replace_tensors(
            self.template,
            [
                answer.to(device, like.dtype)
                for answer, like in zip(answers, find_tensors(self.template), strict=True)
            ],
        )


def run_in_pieces(run: Run, size: int, call: Call) -> Sequence[Tensor]:
    """Run a file that takes batches of a single size with a batch of any size.

    The last piece is filled up with the last sample again.

    Args:
        run: Gives a call to the file, and returns the tensors among the outputs.
        size: The number of samples that the file takes.
        call: The call.

    Raises:
        MisfitError: If there are several pieces, and an output has no samples.
    """
    total = call.batch_size
    if total is None or total == size:
        return run(call)
    found = []
    for start in range(0, total, size):
        places = torch.arange(start, start + size, device="cpu").clamp(max=total - 1)
        piece = map_tensors(lambda t, at=places: t[at] if call.has_samples(t) else t, call)  # type: ignore[misc]
        found.append(run(piece))
        if any(answer.ndim == 0 or len(answer) != size for answer in found[-1]):
            raise MisfitError(
                f"the file takes {size} samples, validation gives {total}, and not all outputs "
                "are of samples"
            )
    return [torch.cat(list(answers))[:total] for answers in zip(*found, strict=True)]
