"""The inputs of a layer, for criteria that score weights by inputs."""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.precision import widen_to_single
from lightning_prune.tensors.shards import find_shard, is_sharded, local_part

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_FORWARDS = tuple(kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d))
_PIECE = 2**24  # factors held at a time
_FAKE_QUANTIZERS = ("weight_fake_quant", "weight_fake_quantizer")  # of torch.ao and of torchao


def check_inputs(tensor: PrunedTensor, model: nn.Module) -> None:
    """Raise ValueError if a hook on the owner would not see the factors of the tensor."""
    if found := find_hidden_inputs(tensor, model):
        # The caller adds the name of the tensor and the remedy.
        raise ValueError(f"need an owner whose inputs a hook can see, got a {found},")


def find_hidden_inputs(tensor: PrunedTensor, model: nn.Module) -> str | None:
    """Return why a hook on the owner would not see the factors of the tensor; None if it does."""
    owner, kind = tensor.owner, type(tensor.owner).__name__
    compiled = [m for m in model.modules() if _is_compiled(m) and owner in m.modules()]
    places = sum(
        parameter is tensor.parameter
        for module in model.modules()
        for parameter in module._parameters.values()
    )
    if compiled:
        return f"{kind} in a compiled {type(compiled[0]).__name__}"
    if isinstance(owner, NonDynamicallyQuantizableLinear):
        return "MultiheadAttention, which does not call its projection"
    if _find_inputs_shape(tensor)[1:] != tensor.shape[1:]:
        return f"{kind}, not the weight of a Linear, convolution or Conv1D"
    if places > 1:
        return f"{kind} that shares the weight with {places - 1} more"
    if not is_sharded(tensor.parameter) and any(map(is_sharded, model.parameters())):
        return f"{kind} whose weight is whole beside shards, so processes may see the same inputs"
    return None


def sum_squares(tensor: PrunedTensor, inputs: Tensor) -> Tensor:
    """Return, for each weight of an output, the sum of the squares of the weight's factors.

    Args:
        tensor: The weight of a Linear, a convolution or a Conv1D.
        inputs: The inputs of a call of the owner.

    Returns:
        A row of sums for each group of outputs, ``(groups, inputs / groups, ...)``. Over all
        processes the sums add up to those of all inputs.
    """
    shape = _find_inputs_shape(tensor)
    if is_sharded(inputs):
        return _sum_distributed(tensor, inputs, shape)
    inputs = widen_to_single(inputs.detach())
    if not _is_counted(tensor):
        return inputs.new_zeros(shape)
    if not isinstance(tensor.owner, _Convolution):
        return inputs.reshape(-1, shape[1]).square().sum(0, keepdim=True)
    windows = _unfold(tensor.owner, inputs, square=True)
    axes = range(2, 2 + len(tensor.owner.kernel_size))
    return windows.sum(dim=(0, *axes)).view(shape)


def _is_counted(tensor: PrunedTensor) -> bool:
    """Whether this process counts the inputs of a layer that tensor parallelism leaves whole.

    The processes along the axis of tensor parallelism hold the same inputs. So only those count
    that share the shards of the weight with the first process.
    """
    parameter = tensor.parameter
    return not is_sharded(parameter) or bool((parameter.device_mesh.mesh == 0).any())


def _sum_distributed(tensor: PrunedTensor, inputs: "DTensor", shape: tuple[int, ...]) -> Tensor:
    """Return the local part of `sum_squares` for the inputs of tensor parallelism.

    Processes that hold the same inputs count them once. Processes that hold some of the inputs'
    last axis count those, and leave 0 for the others.
    """
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if place.is_partial() else place for place in inputs.placements]
    with torch.no_grad():
        inputs = inputs.redistribute(placements=whole)
    shard, mesh = find_shard(inputs), inputs.device_mesh
    assert shard is not None
    if isinstance(tensor.owner, _Convolution) and any(map(shard.is_cut, range(1, inputs.ndim))):
        raise ValueError(
            f"need inputs of '{tensor.name}' that are whole but for the batch, got the placements "
            f"{inputs.placements} of a convolution; to leave the tensor dense, write "
            f"sparsity={{'{tensor.name}': null}}"
        )
    copies = [mesh.get_local_rank(axis) for axis, place in enumerate(whole) if place.is_replicate()]
    local = local_part(inputs)
    if any(copies):
        return torch.zeros(shape, dtype=widen_to_single(local).dtype, device=local.device)
    if isinstance(tensor.owner, _Convolution):
        return sum_squares(tensor, local)
    squares = widen_to_single(local).reshape(-1, local.shape[-1]).square().sum(0)
    return squares.new_zeros(shape).index_copy_(1, shard.positions[-1], squares[None])


def spread_over_outputs(tensor: PrunedTensor, factors: Tensor) -> Tensor:
    """Return the factors of each local weight, output axis first; the outputs may broadcast.

    Args:
        tensor: The weight of a Linear, a convolution or a Conv1D.
        factors: A value for each weight of an output, shaped as by `sum_squares`.
    """
    shard = tensor.shard and tensor.shard.transpose(0, tensor.output_axis)
    for axis in range(1, factors.ndim):
        if shard is not None and shard.is_cut(axis):
            factors = factors.index_select(axis, shard.positions[axis])
    if len(factors) == 1:
        return factors
    outputs = tensor.shape[0] // len(factors)
    if shard is not None:
        return factors[shard.positions[0] // outputs]
    return factors.repeat_interleave(outputs, dim=0)


def list_factors(tensor: PrunedTensor, inputs: Tensor) -> Iterator[Tensor]:
    """Yield the factors that the weights of an output meet, a piece of the samples at a time.

    Args:
        tensor: The weight of a Linear, a convolution or a Conv1D.
        inputs: The inputs of a call of the owner.

    Yields:
        A matrix for each group of outputs, ``(groups, positions, inputs / groups * kernel)``.
    """
    shape = _find_inputs_shape(tensor)
    inputs, columns = widen_to_single(inputs.detach()), math.prod(shape[1:])
    if not isinstance(tensor.owner, _Convolution):
        yield inputs.reshape(1, -1, columns)
        return
    inputs = inputs if inputs.ndim == len(shape) else inputs[None]
    most = max(1, _PIECE // max(1, inputs[0].numel() * math.prod(shape[2:])))
    for begin in range(0, len(inputs), most):
        windows = _unfold(tensor.owner, inputs[begin : begin + most], square=False)
        grouped = windows.reshape(len(windows), *shape[:2], *windows.shape[2:]).movedim(0, 1)
        yield grouped.movedim(2, len(shape)).reshape(shape[0], -1, columns)


def _unfold(owner: _Convolution, inputs: Tensor, *, square: bool) -> Tensor:
    """Return the inputs, padded, that each position of the output meets.

    Returns:
        A view, ``(samples, inputs, positions..., kernel...)``.
    """
    inputs = inputs if inputs.ndim == 2 + len(owner.kernel_size) else inputs[None]
    mode = "constant" if owner.padding_mode == "zeros" else owner.padding_mode
    windows = nn.functional.pad(inputs, owner._reversed_padding_repeated_twice, mode)
    windows = windows.square() if square else windows
    for axis, (size, stride, gap) in enumerate(
        zip(owner.kernel_size, owner.stride, owner.dilation, strict=True), start=2
    ):
        windows = windows.unfold(axis, gap * (size - 1) + 1, stride)[..., ::gap]
    return windows


def make_empty_sums(tensor: PrunedTensor) -> Tensor:
    """Return zeros in the shape of `sum_squares`."""
    dtype = torch.float64 if tensor.parameter.dtype == torch.float64 else torch.float32
    return torch.zeros(_find_inputs_shape(tensor), dtype=dtype, device=tensor.mask.device)


def _find_inputs_shape(tensor: PrunedTensor) -> tuple[int, ...]:
    """Return the shape of `sum_squares`; empty for an unknown kind of layer."""
    owner = tensor.owner
    # A subclass may change the inputs first; under quantization-aware training it only rounds them.
    forward = getattr(type(owner), "forward", None)
    is_known = forward in _FORWARDS or any(hasattr(owner, name) for name in _FAKE_QUANTIZERS)
    if isinstance(owner, nn.Linear) and is_known:
        return (1, owner.in_features)
    if isinstance(owner, _Convolution) and is_known:
        return (owner.groups, owner.in_channels // owner.groups, *owner.kernel_size)
    if type(owner).__name__ == "Conv1D" and len(tensor.shape) == 2:  # Of Hugging Face.
        return (1, tensor.shape[1])
    return ()


def _is_compiled(module: nn.Module) -> bool:
    has_compiled_forward = hasattr(module.forward, "_torchdynamo_orig_callable")
    return has_compiled_forward or module._compiled_call_impl is not None


class InputHook:
    """Adds the squares of a layer's inputs to ``tensor.seen`` in training.

    A call counts in training mode and with gradients. With activation checkpointing, a call also
    runs again in the backward pass. A forward call without gradients counts only when it runs
    again. A forward call with gradients counts at once, and not again. Without training, where
    batches run forward only, each call counts.
    """

    def __init__(self, tensor: PrunedTensor) -> None:
        self.tensor = tensor
        self.uncounted_calls = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add the squares of the inputs before the layer's forward."""
        if not module.training or not (self.tensor.is_forward_only or self._counts_in_training()):
            return
        inputs = next(iter((*args, *kwargs.values())))
        self.tensor.follow_parameter()
        squares = self.tensor.seen["squares"]
        squares += sum_squares(self.tensor, inputs).to(squares.device)
        self.tensor.seen["calls"] += 1

    def _counts_in_training(self) -> bool:
        """Whether the present call counts, if a backward pass follows."""
        if torch._C._current_graph_task_id() != -1:  # In a backward pass.
            is_counted = self.uncounted_calls > 0
            self.uncounted_calls -= is_counted
            return is_counted
        self.uncounted_calls += not torch.is_grad_enabled()
        return torch.is_grad_enabled()

    def __reduce__(self) -> Any:
        """Make the hook of a copy do nothing; a pickled copy loads without this package."""
        return getattr, (nullcontext(), "__exit__")
