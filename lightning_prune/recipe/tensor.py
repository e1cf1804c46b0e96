"""A parameter under pruning."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.parts import reads_at_once
from lightning_prune.tensors.shards import Shard, local_part, sum_shards


@dataclass(kw_only=True, eq=False)
class PrunedTensor:
    """A parameter under pruning.

    Args:
        name: Qualified name of the parameter; the first name if it has several.
        parameter: The parameter; the engine never replaces it.
        owner: The module that holds the parameter under ``name``.
        sparsity: Final fraction of zeros, in [0, 1].
        glob: The glob that set the sparsity.
        optimizer: Index of the optimizer that owns the parameter; of the first if none owns it.
        output_axis: The axis of the output channels, 0 or 1.
        mask: The mask of the local part.
        is_fused: Whether the parameter holds a matrix for each expert, ``(experts, ..., ...)``.
        input_axis: The axis of the inputs of fused experts, 1 or 2; None if it is not known.
        shard: Place of the local part in a sharded parameter; None for a whole parameter.
        row_axes: Axes of the rows, output axis first: each index of these axes keeps a weight. With
            no axis the whole tensor is a row. None if all weights may go.
        most: The largest sparsity that the tensor may reach, in [0, 1].
        is_scored: Whether the criterion observes and scores the tensor. If not, masks of other
            tensors decide: a bias, for example, is pruned with a channel.
        is_trained: Whether an optimizer trains the parameter. If not, the optimizer is only the
            clock of the schedule.
        state: The tensors that the criterion has gathered.
        state_by_weight: The keys of ``state`` whose tensors hold a value for each local weight.
        seen: The tensors that the hooks of the criterion have gathered in this process since the
            last step.
        hooks: The hooks of the criterion.
        is_forward_only: Whether batches run without gradients and without a backward pass. Then
            hooks see each call once.
        step: Number of completed optimizer steps.
        rest: Under straight-through, the values of the pruned local weights, with 0 for the kept
            weights; None if pruned weights are 0 and nothing else.
        suspended: In a dense phase, which local weights the last sparse phase has kept, as a bool
            mask; None if there was no sparse phase, or training is sparse.

    Attributes:
        total: Number of weights of the whole tensor, including pruned weights.
        kept: Number of weights of the whole tensor that the mask keeps.
        changes: Number of weights of the whole tensor that the mask has pruned or regrown; a
            weight counts again at each change.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    sparsity: float
    glob: str
    optimizer: int
    output_axis: int
    mask: Mask
    is_fused: bool = False
    input_axis: int | None = None
    shard: Shard | None = None
    row_axes: tuple[int, ...] | None = None
    most: float = 1.0
    is_scored: bool = True
    is_trained: bool = True
    state: dict[str, Tensor] = field(default_factory=dict)
    state_by_weight: frozenset[str] = frozenset()
    seen: dict[str, Tensor] = field(default_factory=dict)
    hooks: Sequence[RemovableHandle] = ()
    is_forward_only: bool = False
    step: int = 0
    rest: Tensor | None = None
    suspended: Tensor | None = None
    total: int = field(init=False)
    kept: int = field(init=False)
    changes: int = 0

    def __post_init__(self) -> None:
        self.total = self.parameter.numel()
        self.count_kept()

    def follow_parameter(self) -> None:
        """Move all tensors to the device of the parameter, unless that holds no data (``meta``)."""
        device = self.parameter.device
        if device == self.mask.device or device.type == "meta":
            return
        self.mask = Mask(self.mask.kept.to(device), self.weights)
        self.state = {key: value.to(device) for key, value in self.state.items()}
        self.seen = {key: value.to(device) for key, value in self.seen.items()}
        if self.rest is not None:
            self.rest = self.rest.to(device)
        if self.suspended is not None:
            self.suspended = self.suspended.to(device)

    @property
    def may_return(self) -> bool:
        """Whether an update may keep weights again that an earlier update has pruned."""
        return self.rest is not None

    def hold_rest(self) -> None:
        """Let pruned weights go on learning: from their values, or else from 0."""
        if self.rest is None:
            self.rest = torch.zeros_like(self.weights)

    def note_changed(self, kept: int, changed: int | None = None) -> None:
        """Note the number of weights that the mask keeps now, and the number of changed weights.

        Args:
            kept: Number of kept weights of the whole tensor.
            changed: Number of changed weights; None if the mask has only pruned.
        """
        self.changes += self.kept - kept if changed is None else changed
        self.kept = kept

    def count_kept(self) -> None:
        """Count the kept weights of the whole tensor from the mask."""
        self.kept = int(sum_shards(self.mask.count(), self.shard))

    def remove_hooks(self) -> None:
        """Remove the hooks of the criterion."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.seen = (), {}

    def forget_seen(self) -> None:
        """Set to zero the tensors that hooks have gathered since the last step."""
        for value in self.seen.values():
            value.zero_()

    def prune_to(self, mask: Tensor) -> None:
        """Prune the weights that are False in a bool mask, which may broadcast."""
        self.mask.intersect(mask)
        self.note_changed(int(sum_shards(self.mask.count(), self.shard)))

    def regrow_to(self, mask: Tensor) -> None:
        """Adopt a bool mask; pruned weights that the new mask keeps grow from 0."""
        self.mask.apply(self.weights)
        self.mask.set(mask)

    def keep_all(self) -> None:
        """Keep all weights; pruned weights grow from 0."""
        self.regrow_to(torch.ones((), dtype=torch.bool, device=self.mask.device))
        self.note_changed(self.total, self.total - self.kept)

    def suspend_mask(self) -> None:
        """Keep all weights, and remember the mask; pruned weights grow from 0."""
        self.suspended = self.mask.kept
        self.keep_all()

    def resume_mask(self) -> None:
        """Prune again by the mask that was suspended, if any."""
        if self.suspended is not None:
            self.prune_to(self.suspended)
            self.suspended = None

    @property
    def reads_at_once(self) -> bool:
        """Whether the host reads a number of the tensor at once, without a wait for other work.

        Processes with shards count as such: they send each other the numbers in turn.
        """
        return self.shard is not None or reads_at_once(self.mask.device)

    @property
    def weights(self) -> Tensor:
        """The local part of the parameter, detached; writing into it changes the model."""
        return local_part(self.parameter)

    @property
    def gradient(self) -> Tensor:
        """The local part of the gradient.

        Raises:
            ValueError: If the parameter has no gradient.
        """
        if self.parameter.grad is None:
            is_trained = self.parameter.requires_grad
            why = "the loss does not depend on the tensor" if is_trained else "the tensor is frozen"
            raise ValueError(
                f"need a gradient, got none for '{self.name}' at step {self.step}: {why}; "
                f"to leave the tensor dense, write sparsity={{'{self.name}': null}}"
            )
        gradient = local_part(self.parameter.grad)
        return gradient if gradient.layout == torch.strided else gradient.to_dense()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor, or of one fused expert, as ``(output, input, ...)``."""
        if self.is_fused:
            of_expert = tuple(self.parameter.shape[1:])
            return of_expert[::-1] if self.input_axis == 1 else of_expert
        shape = list(self.parameter.shape)
        shape[0], shape[self.output_axis] = shape[self.output_axis], shape[0]
        return tuple(shape)

    def indices(self) -> Tensor:
        """Return for each local weight the row-major index in the whole tensor."""
        if self.shard is not None:
            return self.shard.find_indices()
        return torch.arange(self.total, device=self.mask.device).view(self.mask.shape)

    def output_first(self, tensor: Tensor) -> Tensor:
        """Return a view with the output axis first; a second call restores the order."""
        return tensor.transpose(0, self.output_axis) if self.output_axis else tensor


@contextmanager
def undo_states(tensors: Iterable[PrunedTensor]) -> Iterator[None]:
    """Give tensors back the states that they have now, if the block raises."""
    before = {tensor: tensor.state for tensor in tensors}
    try:
        yield
    except BaseException:
        for tensor, state in before.items():
            tensor.state = state
        raise
