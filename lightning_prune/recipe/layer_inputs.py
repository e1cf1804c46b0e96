"""What the inputs of a layer are, for criteria that look at them."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.precision import widen_to_single

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def check_inputs(tensor: PrunedTensor, model: nn.Module) -> None:
    """Raise ValueError if a hook on the owner would not see what the tensor is multiplied with."""
    owner, kind = tensor.owner, type(tensor.owner).__name__
    compiled = [m for m in model.modules() if _is_compiled(m) and owner in m.modules()]
    places = sum(
        parameter is tensor.parameter
        for module in model.modules()
        for parameter in module._parameters.values()
    )
    why = None
    if compiled:
        why = f"{kind} in a compiled {type(compiled[0]).__name__}"
    elif isinstance(owner, NonDynamicallyQuantizableLinear):
        why = "MultiheadAttention, which does not call it"
    elif _inputs_shape(tensor)[1:] != tensor.shape[1:]:
        why = f"{kind}, not the weight of a Linear, convolution or Conv1D"
    elif places > 1:
        why = f"{kind} that shares it with {places - 1} more"
    if why:
        raise ValueError(f"need an owner whose inputs a hook can see, got a {why},")


def square_sums(tensor: PrunedTensor, inputs: Tensor) -> Tensor:
    """Return for each input the sum of the squares of what its weights are multiplied with.

    Args:
        tensor: The weight of a Linear, a convolution or a Conv1D.
        inputs: What its owner is called with.

    Returns:
        A row of the weight for each group of outputs, ``(groups, input / groups, ...)``.
    """
    owner, shape = tensor.owner, _inputs_shape(tensor)
    inputs = widen_to_single(inputs.detach())
    if not isinstance(owner, _Convolution):
        return inputs.reshape(-1, shape[1]).square().sum(0, keepdim=True)
    axes = range(2, 2 + len(owner.kernel_size))
    inputs = inputs if inputs.ndim == len(shape) else inputs[None]
    mode = "constant" if owner.padding_mode == "zeros" else owner.padding_mode
    windows = nn.functional.pad(inputs, owner._reversed_padding_repeated_twice, mode).square()
    for axis, size, stride, gap in zip(
        axes, owner.kernel_size, owner.stride, owner.dilation, strict=True
    ):
        windows = windows.unfold(axis, gap * (size - 1) + 1, stride)[..., ::gap]
    return windows.sum(dim=(0, *axes)).view(shape)


def empty_sums(tensor: PrunedTensor) -> Tensor:
    """Return zeros in the shape of `square_sums`."""
    wide = torch.float64 if tensor.parameter.dtype == torch.float64 else torch.float32
    return torch.zeros(_inputs_shape(tensor), dtype=wide, device=tensor.mask.device)


def _inputs_shape(tensor: PrunedTensor) -> tuple[int, ...]:
    """Return the shape of `square_sums`; empty if the owner is not a layer that is known."""
    owner = tensor.owner
    forward = getattr(type(owner), "forward", None)  # another might do anything with its inputs
    if isinstance(owner, nn.Linear) and forward is nn.Linear.forward:
        return (1, owner.in_features)
    if isinstance(owner, _Convolution) and forward in (
        nn.Conv1d.forward,
        nn.Conv2d.forward,
        nn.Conv3d.forward,
    ):
        return (owner.groups, owner.in_channels // owner.groups, *owner.kernel_size)
    if type(owner).__name__ == "Conv1D" and len(tensor.shape) == 2:  # of Hugging Face
        return (1, tensor.shape[1])
    return ()


def _is_compiled(module: nn.Module) -> bool:
    by_its_forward = hasattr(module.forward, "_torchdynamo_orig_callable")  # or by torch.compile
    return by_its_forward or module._compiled_call_impl is not None


class InputHook:
    """Adds the squares of a layer's inputs to ``tensor.seen`` where they are trained on.

    That is in training mode and with gradients, and once if activations are checkpointed: what
    was computed without gradients counts if it is computed again in the backward pass, what was
    computed with them does not.
    """

    def __init__(self, tensor: PrunedTensor) -> None:
        self.tensor = tensor
        self.uncounted = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Be called before the layer's forward."""
        if not module.training:
            return
        if torch._C._current_graph_task_id() != -1:  # in a backward pass
            if not self.uncounted:
                return
            self.uncounted -= 1
        elif not torch.is_grad_enabled():
            self.uncounted += 1
            return
        inputs = next(iter((*args, *kwargs.values())))
        self.tensor.seen["squares"] += square_sums(self.tensor, inputs)
        self.tensor.seen["calls"] += 1

    def __reduce__(self) -> Any:
        """Do nothing in a copy of the model, and let a pickled one load without this package."""
        return getattr, (nullcontext(), "__exit__")
