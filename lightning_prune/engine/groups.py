"""What is ranked together: it scores itself and spreads one mask over its members."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.recipe.allocations import Atoms, TensorAtoms
from lightning_prune.recipe.patterns import Pattern
from lightning_prune.tensors import ranking
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import Shard, local, total


@dataclass(kw_only=True, eq=False)
class PrunedTensor:
    """A parameter under pruning.

    Args:
        name: Its qualified name.
        parameter: The parameter itself, never replaced.
        owner: The module where it hangs, under its first name.
        sparsity: Its final fraction of zeros, in [0, 1].
        glob: The glob that decided so.
        optimizer: Index of the optimizer that owns it.
        output_axis: The axis of its output channels, 0 or 1.
        masking: Which entries are kept, of the part that is here.
        state: What the criterion has gathered.
        seen: What its hooks have gathered here since the last step, before `state` takes it up.
        hooks: These hooks.
        step: Completed steps of the owner.
        shard: Which part of a sharded parameter is here; None if all of it is.
        follows: Whether it only goes with others, such as the bias of a channel: the criterion
            neither sees nor scores it.

    Attributes:
        kept: Number of entries of the whole tensor that are not pruned.
        changes: Number of changes of mask entries, of the whole tensor.
    """

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    sparsity: float
    glob: str
    optimizer: int
    output_axis: int
    masking: Mask
    state: dict[str, Tensor] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)
    hooks: Sequence[RemovableHandle] = ()
    step: int = 0
    shard: Shard | None = None
    follows: bool = False
    kept: int = field(init=False)
    changes: int = 0

    def __post_init__(self) -> None:
        self.kept = int(total(self.masking.count(), self.shard))

    @property
    def mask(self) -> Tensor:
        """Which entries are kept: a new bool tensor, shaped as the part that is here."""
        return self.masking.kept

    def unwatch(self) -> None:
        """Take the criterion's hooks away."""
        for hook in self.hooks:
            hook.remove()
        self.hooks, self.seen = (), {}

    def forget_seen(self) -> None:
        """Forget what hooks have gathered since the last step."""
        for value in self.seen.values():
            value.zero_()

    def prune_to(self, mask: Tensor) -> None:
        """Keep only what is kept already and in ``mask``."""
        before = self.kept
        self.masking.intersect(mask)
        self.kept = int(total(self.masking.count(), self.shard))
        self.changes += before - self.kept

    def regrow_to(self, mask: Tensor) -> None:
        """Keep what is in ``mask``; what was pruned before grows from 0."""
        self.masking.apply(self.weights)
        self.changes += int(total((self.mask ^ mask).sum(), self.shard))
        self.masking.set(mask)
        self.kept = int(total(self.masking.count(), self.shard))

    @property
    def weights(self) -> Tensor:
        """What is here of the parameter, without gradient; writing into it prunes the model."""
        return local(self.parameter)

    @property
    def gradient(self) -> Tensor:
        """What is here of the gradient.

        Raises:
            ValueError: If there is none.
        """
        if self.parameter.grad is None:
            raise ValueError(
                f"need a gradient, got none for '{self.name}' at step {self.step}: it had no part "
                f"in the loss; to leave it dense, write sparsity={{'{self.name}': null}}"
            )
        gradient = local(self.parameter.grad)
        return gradient if gradient.layout == torch.strided else gradient.to_dense()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor as ``(output, input, ...)``."""
        shape = list(self.parameter.shape)
        shape[0], shape[self.output_axis] = shape[self.output_axis], shape[0]
        return tuple(shape)

    @property
    def total(self) -> int:
        """Number of entries of the whole tensor, pruned ones included."""
        return self.parameter.numel()

    def indices(self) -> Tensor:
        """Return the row-major index in the whole tensor of each entry that is here."""
        if self.shard is not None:
            return self.shard.indices()
        return torch.arange(self.total, device=self.masking.device).view(self.masking.shape)

    def output_first(self, tensor: Tensor) -> Tensor:
        """Return a view with the output axis first; the same call undoes it."""
        return tensor.transpose(0, self.output_axis)


Score = Callable[[PrunedTensor, dict[str, Tensor]], Tensor]


@dataclass(kw_only=True, eq=False)
class Group:
    """What is ranked together: it scores itself and spreads one mask over its members.

    Patterns inside a tensor make groups of one; `ChannelPattern` makes larger ones, of which this
    is the base.

    Args:
        members: The tensors; the first says to which sparsity, by which glob and optimizer.
        pattern: What an atom is.
    """

    members: tuple[PrunedTensor, ...]
    pattern: Pattern

    @property
    def name(self) -> str:
        """The name of the first member."""
        return self.members[0].name

    @property
    def producers(self) -> tuple[str, ...]:
        """Names of the members whose sparsity it has."""
        return (self.name,)

    @property
    def size(self) -> int:
        """Number of what sparsity counts, pruned ones included: entries, or channels."""
        return self.members[0].total

    @property
    def kept(self) -> int:
        """Number of these that are not pruned."""
        return self.members[0].kept

    @property
    def changed(self) -> float:
        """Fraction of these that has changed since `forget_changes`."""
        return self.members[0].changes / self.size

    def forget_changes(self) -> None:
        """Begin to count changes anew."""
        for member in self.members:
            member.changes = 0

    @property
    def sparsity(self) -> float:
        """The final sparsity, that of the first member."""
        return self.members[0].sparsity

    @property
    def optimizer(self) -> int:
        """Index of the optimizer that owns it, that of the first member."""
        return self.members[0].optimizer

    @property
    def shard(self) -> Shard | None:
        """Which part of the atoms is here, in the order of the scores; None if all are."""
        member = self.members[0]
        return member.shard and member.shard.transpose(0, member.output_axis)

    @cached_property
    def total(self) -> int:
        """Number of atoms, pruned ones included."""
        return self.alive().numel()

    def alive(self) -> Tensor:
        """Return which atoms are not pruned: those with a kept entry anywhere."""
        return self._with_any(lambda member: member.mask)

    def nonzero(self) -> Tensor:
        """Return which atoms have a weight that is not 0, pruned or not."""
        return self._with_any(lambda member: member.weights != 0)

    @property
    def atoms_kept(self) -> int:
        """Number of atoms that are not pruned."""
        return int(self.alive().sum())

    def holds(self, due: int) -> bool:
        """Whether nothing has to go for the pattern's sake, where ``due`` atoms may be kept."""
        return self.pattern.holds(self.alive(), due)

    def atoms(self, score: Score | None, target: float) -> Atoms:
        """Return the atoms with their bounds.

        Args:
            score: A criterion's ``score``; None for a plan that needs none.
            target: The sparsity that is due now, in [0, 1].
        """
        scores = self.blank_scores() if score is None else self.scores(score)
        alive = self.alive()
        due = ranking.number_kept(self.total, target)
        protected, allowed = self.pattern.bounds(scores, alive, due)
        if self.sparsity < 1 and not protected.any():
            protected = ranking.best(scores.masked_fill(~allowed, -math.inf), 1)
        return TensorAtoms(
            shape=self.members[0].shape, scores=scores, protected=protected, allowed=allowed
        )

    def scores(self, score: Score) -> Tensor:
        """Return one score an atom: the mean over its entries.

        Args:
            score: A criterion's ``score``.

        Raises:
            ValueError: If a score is NaN or infinite, or scores have another shape than the tensor.
        """
        member = self.members[0]
        scores = member_scores(member, score)
        wide = scores if scores.dtype == torch.float64 else scores.float()
        return self.pattern.to_atoms(member.output_first(wide))

    def blank_scores(self) -> Tensor:
        """Return equal scores, for plans that need none."""
        member = self.members[0]
        return self.pattern.to_atoms(
            torch.zeros_like(member.output_first(member.weights), dtype=torch.float32)
        )

    def rounded(self, due: int) -> int:
        """Return how many atoms are kept where an allocation gives ``due``."""
        return self.pattern.round_kept(due, self.total, width=1)

    def choose(self, ranked: Tensor, keep: int) -> Tensor:
        """Return the bool mask of the atoms that are here and among the ``keep`` best of all."""
        return self.pattern(ranked, ranking.best_here(ranked, keep, self.shard))

    def exchange(self, share: float, drop: Score, grow: Score) -> None:
        """Drop a share of the kept atoms and let as many others grow, inside the pattern.

        Args:
            share: Fraction of the kept atoms, in [0, 1].
            drop: A criterion's ``score``; its lowest are dropped.
            grow: A criterion's ``score``; its highest grow. What has just been dropped comes last.
        """
        alive = self.alive()
        kept = int(total(alive.sum(), self.shard))
        exchanged = min(round(share * kept), self.total - kept)
        if exchanged == 0:
            return
        scores = self.scores(drop).masked_fill(~alive, -math.inf)
        survivors = self.choose(scores, kept - exchanged)
        scores = self.scores(grow)
        scores.masked_fill_(alive & ~survivors, torch.finfo(scores.dtype).min)
        scores.masked_fill_(survivors, math.inf)
        protected, allowed = self.pattern.bounds(scores, torch.ones_like(alive), kept)
        if int(total((survivors | protected).sum(), self.shard)) <= kept:
            scores.masked_fill_(protected, math.inf)
        chosen = self.choose(scores.masked_fill_(~allowed & ~survivors, -math.inf), kept)
        for member, entries in self._entries(chosen):
            member.regrow_to(entries)

    def keep_best(self, atoms: Atoms, keep: int) -> None:
        """Prune all but the best.

        Args:
            atoms: What `atoms` has returned.
            keep: How many stay, between floor and cap.
        """
        self.keep(self.choose(atoms.ranked(), keep))

    def keep(self, atoms: Tensor) -> None:
        """Set the members' masks from a bool mask of the atoms; what is pruned stays pruned."""
        for member, entries in self._entries(atoms):
            member.prune_to(entries)

    def _with_any(self, entries: Callable[[PrunedTensor], Tensor]) -> Tensor:
        """Return which atoms have an entry for which a bool tensor of a member is true."""
        member = self.members[0]
        return self.pattern.to_atoms(member.output_first(entries(member)).float()) > 0

    def _entries(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield each member with its part of a bool mask of the atoms."""
        for member in self.members:
            shape = tuple(member.output_first(member.weights).shape)
            yield member, member.output_first(self.pattern.to_entries(atoms, shape))


def member_scores(member: PrunedTensor, score: Score, *, check: bool = True) -> Tensor:
    """Return one score an entry of what is here of a tensor.

    Args:
        member: The tensor.
        score: A criterion's ``score``.
        check: Whether to look at the scores; they need it once.

    Raises:
        ValueError: If a score is NaN or infinite, or scores have another shape than the tensor.
    """
    scores = local(score(member, member.state))
    if not check:
        return scores
    source = getattr(score, "__qualname__", score)
    if scores.shape != member.masking.shape:
        raise ValueError(
            f"need scores shaped as the tensor, {tuple(member.masking.shape)}, got "
            f"{tuple(scores.shape)} from {source} for '{member.name}'"
        )
    bad = int(total(_number_of_bad(scores), member.shard))
    if bad:
        raise ValueError(
            f"need finite scores, got {bad} NaN or infinite ones of {member.total} from "
            f"{source} for '{member.name}' at step {member.step}; "
            "its weights or gradients have diverged"
        )
    return scores


def _number_of_bad(scores: Tensor) -> Tensor:
    """Return how many scores are NaN or infinite; they are looked for only if there are any."""
    if scores.numel() == 0 or bool(torch.isfinite(torch.stack(scores.aminmax())).all()):
        return torch.tensor(0)
    return scores.numel() - torch.isfinite(scores).sum()
