"""Keep pruned weights at zero from step to step, with few passes over the weights."""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_prune.engine.optimizers import Steadiness, clear_pruned, has_plain_statistics
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.mask_sets import MaskSet
from lightning_prune.tensors.shards import local_part


class ZeroKeeper:
    """Keeps at zero the pruned weights that an optimizer trains.

    Before each step the keeper masks the gradients, so that clipping and statistics see zeros.
    After the step it masks the weights, unless the step cannot have moved pruned weights. Then the
    optimizer treats each weight alone, and has plain statistics that are zero for pruned weights.
    Also, no code has written into weights or gradients since they were masked. Torch counts the
    writes into a tensor, except writes through ``data`` and by fused optimizers.

    Args:
        optimizer: The optimizer.
        tensors: The pruned tensors; the keeper selects those that the optimizer trains. Another
            optimizer may own a tensor too.
        index: Index of the optimizer.
    """

    def __init__(self, optimizer: Optimizer, tensors: Sequence[PrunedTensor], index: int) -> None:
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        # Pruned weights that may return keep gradients and statistics; `DenseCopies` masks them.
        plain = [tensor for tensor in tensors if not tensor.may_return]
        self._tensors = [tensor for tensor in plain if id(tensor.parameter) in held]
        self._devices: list[int] = []  # the device of each parameter at the last look
        dtypes = {tensor.parameter.dtype for tensor in self._tensors}
        least_eps = max((torch.finfo(dtype).smallest_normal for dtype in dtypes), default=0)
        self._steadiness = Steadiness(optimizer, least_eps)
        self._index = index
        self._optimizer = optimizer
        self._gradients, self._weights = MaskSet(), MaskSet()
        self._is_clear = False  # whether statistics of pruned weights are 0
        self._plain: set[PrunedTensor] = set()  # are its own, whole, and with plain statistics
        self._disturbed: set[PrunedTensor] = set()  # had gradients that were not 0
        self._written: dict[PrunedTensor, int] = {}  # versions of weights after a step
        self._masked: list[PrunedTensor] = []  # those that the step may leave at 0
        self._held: list[Tensor | None] = []  # their gradients
        self._versions: list[int] = []  # of the gradients
        self._overwritten: set[PrunedTensor] = set()  # since the last step
        self._storages = {tensor: _find_storage(tensor) for tensor in self._tensors}
        self._hook = optimizer.register_load_state_dict_post_hook(self._mark_unclear)

    def remove(self) -> None:
        """Remove the hook."""
        self._hook.remove()

    # A call in a cold cache takes some microseconds. So the work of each step is in few functions,
    # and runs over lists: a look at two lists tells that nothing has changed.
    def clear(self) -> None:
        """Zero the statistics that the optimizer has gathered of pruned weights, once.

        First all tensors of the engine follow a model that was moved to another device.
        """
        devices = [tensor.parameter.get_device() for tensor in self._tensors]
        if devices != self._devices:
            for tensor in self._tensors:
                tensor.follow_parameter()
            self._devices = devices
        if not self._is_clear:
            pruned = [tensor for tensor in self._tensors if tensor.kept < tensor.total]
            clear_pruned(self._optimizer, pruned)
            self._plain = {
                tensor
                for tensor in self._tensors
                if tensor.optimizer == self._index and tensor.shard is None
                if has_plain_statistics(self._optimizer, tensor.parameter)
            }
            self._is_clear = True

    def before_step(self) -> None:
        """Mask the gradients."""
        masks, dense, tensors, gradients = [], [], [], []
        plain, strided = self._plain, torch.strided
        for tensor in self._tensors:
            if tensor.kept < tensor.total:
                gradient = tensor.parameter.grad
                if gradient is not None:
                    if gradient.layout != strided:
                        continue
                    masks.append(tensor.mask)
                    dense.append(local_part(gradient))
                if tensor in plain:
                    tensors.append(tensor)
                    gradients.append(gradient)
        self._gradients.apply(masks, dense)
        if self._steadiness.leaves_zeros():
            self._masked, self._held = tensors, gradients
            self._versions = [0 if each is None else each._version for each in gradients]
            self.note_writes()
        else:
            self.forget_gradients()

    def after_step(self) -> None:
        """Mask the weights of each tensor whose pruned weights may have moved."""
        pruned = [tensor for tensor in self._tensors if tensor.kept < tensor.total]
        gradients = [tensor.parameter.grad for tensor in self._masked]
        versions = [0 if each is None else each._version for each in gradients]
        is_same = versions == self._versions and all(map(operator.is_, gradients, self._held))
        if not is_same or pruned != self._masked or self._disturbed or self._overwritten:
            self._mask_moved(pruned)
            pruned = [tensor for tensor in pruned if tensor.shard is None]
        self._written = {tensor: tensor.parameter._version for tensor in pruned}
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Let the gradients go: the step is over, or is not made."""
        self._masked, self._held, self._versions = [], [], []

    def note_writes(self) -> None:
        """Note the tensors that other code has written into since the last step."""
        for tensor in self._masked:
            if self._written.get(tensor) != tensor.parameter._version:
                self._overwritten.add(tensor)

    def _mask_moved(self, pruned: Sequence[PrunedTensor]) -> None:
        """Look at each tensor, and mask the weights that the step has not left at 0."""
        noted = dict(zip(self._masked, zip(self._held, self._versions, strict=True), strict=True))
        moved = [t for t in pruned if t not in noted or not self._left_zeros(t, *noted[t])]
        if moved:
            self._weights.apply([t.mask for t in moved], [t.weights for t in moved])
        self._overwritten.clear()

    def _left_zeros(self, tensor: PrunedTensor, gradient: Tensor | None, version: int) -> bool:
        """Whether the step has left the pruned weights at 0; clears statistics if needed."""
        is_same = gradient is tensor.parameter.grad
        if not is_same or (gradient is not None and gradient._version != version):
            self._disturbed.add(tensor)
            return False
        if tensor in self._disturbed:
            clear_pruned(self._optimizer, [tensor])
            self._disturbed.remove(tensor)
            return False
        return tensor not in self._overwritten

    def begin_anew(self) -> None:
        """Clear again before the next step, after a revival; its traces are old."""
        self._is_clear = False
        self._storages = {tensor: _find_storage(tensor) for tensor in self._tensors}

    def _mark_unclear(self, optimizer: Optimizer) -> None:
        """Clear again: loaded statistics of pruned weights may not be 0."""
        self._is_clear = False

    def find_trace(self, tensor: PrunedTensor) -> str | None:
        """Return how other code has written into a tensor, as far as it left traces."""
        if tensor in self._storages and self._storages[tensor] != _find_storage(tensor):
            return "the data was replaced, as vector_to_parameters does"
        if self._written.get(tensor, tensor.parameter._version) != tensor.parameter._version:
            return "written in place since the last step"
        return None


def _find_storage(tensor: PrunedTensor) -> int:
    """Return the identity of the memory of the weights."""
    return int(tensor.weights.untyped_storage()._cdata)
