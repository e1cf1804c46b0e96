"""Groups of a single tensor."""

from collections.abc import Iterator

from torch import Tensor

from lightning_prune.engine.choices import Settled
from lightning_prune.engine.groups import Group, Scores
from lightning_prune.engine.tally import Counted
from lightning_prune.models.sharding import find_class
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.counting import Masked


class TensorGroup(Group):
    """A group of one tensor."""

    @property
    def name(self) -> str:
        """The name of the tensor."""
        return self.members[0].name

    @property
    def kind(self) -> str:
        """The class of the layer that holds the tensor."""
        return find_class(self.members[0].owner).__name__

    @property
    def producers(self) -> tuple[str, ...]:
        """The name of the tensor."""
        return (self.name,)

    @property
    def size(self) -> int:
        """Number of weights, pruned ones included."""
        return self.members[0].total

    @property
    def weights_per_atom(self) -> float:
        """Number of weights in an atom."""
        return self.size / self.total

    @property
    def kept(self) -> int:
        """Number of weights that are not pruned."""
        return self.members[0].kept

    @property
    def changed(self) -> float:
        """Fraction of the weights that has changed since `forget_changes`."""
        return self.members[0].changes / self.size

    def forget_changes(self) -> None:
        """Begin to count changes anew."""
        self.members[0].changes = 0

    def rank(self, scores: Scores) -> Tensor:
        """Return a score for each local atom: the mean over its weights."""
        return self.pattern.to_atoms(self.arrange(scores[self.name].whole))

    def alive(self) -> Tensor:
        """Return which local atoms are not pruned."""
        return self._find_any(self.members[0].mask.kept)

    def nonzero(self) -> Tensor:
        """Return which local atoms have a weight that is not 0."""
        return self._find_any(self.members[0].weights != 0)

    def foresee(self, choice: Settled) -> Iterator[Counted]:
        """Yield how many weights the tensor keeps after a mask; a threshold is counted later."""
        if isinstance(choice, Tensor):
            for member, weights in self.spread(choice):
                pair = Masked(member.mask, weights.expand(member.mask.shape))
                count = member.mask.compare(weights) if self.may_return else pair
                yield count, member.shard, member.note_changed

    def spread(self, atoms: Tensor) -> Iterator[tuple[PrunedTensor, Tensor]]:
        """Yield the tensor with the mask of its weights."""
        member = self.members[0]
        shape = tuple(self.arrange(member.output_first(member.weights)).shape)
        weights = self.pattern.to_entries(atoms, shape)
        yield member, member.output_first(self.rearrange(weights))

    def arrange(self, weights: Tensor) -> Tensor:
        """Return a value for each weight, output axis first, in the shape that the pattern sees."""
        return weights

    def rearrange(self, weights: Tensor) -> Tensor:
        """Undo `arrange`."""
        return weights

    def _find_any(self, weights: Tensor) -> Tensor:
        """Return which atoms have a weight for which a bool tensor is true."""
        arranged = self.arrange(self.members[0].output_first(weights))
        if self.pattern.prunes_single_weights:
            return arranged
        return self.pattern.to_atoms(arranged.float()) > 0
