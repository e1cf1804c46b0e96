"""How pruned weights stay at zero from step to step, with as few passes over them as may be."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.optimizers import clear_pruned, leaves_zeros
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.shards import local_part


class ZeroKeeper:
    """Keeps the pruned weights that one optimizer trains at zero.

    Gradients are masked before each step, so that clipping and statistics do not see them. Weights
    are masked after it, unless the step cannot have moved them: their optimizer treats each entry
    alone, has gathered nothing of them, and no one has written into weights or gradients since they
    were masked. Torch counts what writes into a tensor, but not through its ``data``, nor what a
    fused optimizer writes.

    Args:
        optimizer: The optimizer.
        tensors: What it trains; some may belong to another optimizer, too.
        index: Its own index.
    """

    def __init__(self, optimizer: Optimizer, tensors: Sequence[PrunedTensor], index: int) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._tensors = [tensor for tensor in tensors if id(tensor.parameter) in held]
        dtypes = {tensor.parameter.dtype for tensor in self._tensors}
        self._least_eps = max((torch.finfo(dtype).smallest_normal for dtype in dtypes), default=0)
        self._index = index
        self._optimizer = optimizer
        self._is_clear = False  # whether the statistics of pruned weights are 0
        self._disturbed: set[PrunedTensor] = set()  # where a gradient was not 0 after all
        self._written: dict[PrunedTensor, int] = {}  # versions of the weights after the last step
        self._masked: dict[PrunedTensor, tuple[Tensor | None, int]] = {}  # gradients, versions
        self._overwritten: set[PrunedTensor] = set()  # weights, since the last step
        self._hooks = [
            optimizer.register_load_state_dict_post_hook(self._distrust),
            # A compiled optimizer would trace it and compile again.
            optimizer.register_step_pre_hook(torch.compiler.disable(self._look_again)),  # type: ignore[no-untyped-call]
        ]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def clear(self) -> None:
        """Zero what the optimizer may have gathered of pruned weights elsewhere."""
        if not self._is_clear:
            for tensor in self._pruned():
                clear_pruned(self._optimizer, tensor.parameter, tensor.mask)
            self._is_clear = True

    def before_step(self) -> None:
        """Mask the gradients."""
        may_rest = leaves_zeros(self._optimizer, self._least_eps)
        for tensor in self._pruned():
            gradient = tensor.parameter.grad
            if gradient is None or gradient.layout == torch.strided:
                if gradient is not None:
                    tensor.mask.apply(local_part(gradient))
                if may_rest and tensor.optimizer == self._index and tensor.shard is None:
                    self._masked[tensor] = gradient, 0 if gradient is None else gradient._version
        self._look_again()

    def after_step(self) -> None:
        """Mask the weights where that is needed."""
        for tensor in self._pruned():
            if not self._rests(tensor):
                tensor.mask.apply(tensor.weights)
            if tensor.shard is None:
                self._written[tensor] = tensor.parameter._version
        self._overwritten = set()
        self._masked = {}  # or the gradients would outlive the step

    def _pruned(self) -> Iterator[PrunedTensor]:
        """Yield the tensors of which something is pruned by now."""
        return (tensor for tensor in self._tensors if tensor.kept < tensor.total)

    def _look_again(self, *_: Any) -> None:
        """Note into which weights someone has written since the last step."""
        for tensor in self._masked:
            if self._written.get(tensor) != tensor.parameter._version:
                self._overwritten.add(tensor)

    def _rests(self, tensor: PrunedTensor) -> bool:
        """Whether a step has left the pruned weights at 0."""
        if tensor not in self._masked:
            return False
        gradient, version = self._masked[tensor]
        is_same = gradient is tensor.parameter.grad
        if not is_same or (gradient is not None and gradient._version != version):
            self._disturbed.add(tensor)
            return False
        if tensor in self._disturbed:
            clear_pruned(self._optimizer, tensor.parameter, tensor.mask)
            self._disturbed.remove(tensor)
            return False
        return tensor not in self._overwritten

    def _distrust(self, optimizer: Optimizer) -> None:
        self._is_clear = False
