"""Costs of a model, as functions of the atoms that each group keeps."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from lightning_prune.recipe.budgets import Unit


class Cost(ABC):
    """The cost of a model by the number of atoms that each group keeps; it never falls with them.

    Attributes:
        unit: Unit of the cost.
    """

    unit: Unit

    @abstractmethod
    def __call__(self, kept: Mapping[str, int]) -> float:
        """Return the cost of the pruned model.

        Args:
            kept: Number of atoms that each group keeps, by the name of the group; of all groups.
        """

    @abstractmethod
    def dense_parts(self) -> Mapping[str, float]:
        """Return the cost of each part that no group can lower, by the name of a parameter."""
