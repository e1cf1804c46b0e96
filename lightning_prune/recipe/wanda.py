"""Wanda: the criterion that reads the inputs of a layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.recipe.criteria import Criterion, State
from lightning_prune.recipe.layer_inputs import (
    InputHook,
    check_inputs,
    make_empty_sums,
    spread_over_outputs,
)
from lightning_prune.recipe.tensor import PrunedTensor


@dataclass(frozen=True, kw_only=True)
class WandaCriterion(Criterion):
    r"""Keep the weights with the largest products of weight and input.

    .. math:: s_{ij} = |w_{ij}| \, \lVert x_j \rVert_2

    The inputs :math:`x_j` are those of all training batches and replicas since the last update,
    including the present step: Sun et al., "A Simple and Effective Pruning Approach for LLMs"
    (2023), https://arxiv.org/abs/2306.11695. The paper compares weights within each output row. For
    this, use ``UnstructuredPattern(per_row=True)`` with `UniformAllocation`, or use `NMPattern`.
    Other patterns rank the rows of a tensor together. Other allocations also rank tensors together.

    For a convolution, :math:`x_j` are the values that a position of the kernel meets, including
    padding. Hooks read the inputs until the last update. In training they count only inputs in
    training mode and with gradients; in pruning without training, all inputs.

    Raises:
        ValueError: If a hook cannot see the inputs of a tensor. The tensor must be the weight of a
            Linear, a convolution (not transposed) or the Conv1D of Hugging Face. The module
            must not share the tensor, must be called in the forward pass, and must not be compiled.
            Also if the module had no inputs since the last update.
    """

    resets_at_update: ClassVar[bool] = True
    reads_inputs_only: ClassVar[bool] = True
    works_on_shards: ClassVar[bool] = True

    def check_tensor(self, tensor: PrunedTensor, model: nn.Module) -> None:
        """Raise ValueError if a hook cannot see the inputs of the tensor."""
        check_inputs(tensor, model)

    def watch(self, tensor: PrunedTensor) -> Sequence[RemovableHandle]:
        """Return the hook that sums the squares of inputs."""
        squares = make_empty_sums(tensor)
        tensor.seen = {"squares": squares, "calls": squares.new_zeros(())}
        return (tensor.owner.register_forward_pre_hook(InputHook(tensor), with_kwargs=True),)

    def observe(self, tensor: PrunedTensor, state: State) -> State:
        """Add the sums that the hook has gathered since the last step."""
        return {
            key: state[key] + seen if state else seen.clone() for key, seen in tensor.seen.items()
        }

    def score(self, tensor: PrunedTensor, state: State) -> Tensor:
        r"""Return :math:`|w_{ij}| \, \lVert x_j \rVert_2`."""
        if not state or not state["calls"]:
            raise ValueError(
                f"need inputs before an update of the masks, got none for '{tensor.name}' by step "
                f"{tensor.step} since the last update: the {type(tensor.owner).__name__} was "
                "not called in training mode, or joined only now; to leave the tensor dense, write "
                f"sparsity={{'{tensor.name}': null}}"
            )
        norms = spread_over_outputs(tensor, state["squares"].sqrt())
        return tensor.output_first(tensor.output_first(tensor.weights.abs()) * norms)
