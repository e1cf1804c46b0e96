"""Ownership: the parameters that an optimizer trains, so that a new one is cheap to notice."""

import operator
from collections.abc import Iterable, Sequence

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer


class Ownership:
    """The parameters that an optimizer has trained, by identity.

    A tensor under pruning stays under pruning, even if the user freezes it. So the selection can
    only change when the optimizer trains a parameter for the first time: a parameter that was
    added, unfrozen or initialized, or that has replaced another one. A frozen parameter is not
    known, until it is trained.

    Args:
        optimizer: The optimizer, at a time when the tensors were just selected.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        # The references keep Python from giving the identity of a freed parameter to a new one.
        self._known: dict[int, nn.Parameter] = {}
        self._unknown: list[nn.Parameter] = []  # those that are held, but were not trained yet
        self._held: list[list[nn.Parameter]] = []  # those of each group
        self.look_again(optimizer, waiting=())

    def has_grown(self, optimizer: Optimizer) -> bool:
        """Whether the optimizer trains a parameter that it did not train before."""
        unknown, groups = self._unknown, optimizer.param_groups
        is_same = len(groups) == len(self._held) and all(
            len(group["params"]) == len(held) and all(map(operator.is_, group["params"], held))
            for group, held in zip(groups, self._held, strict=True)
        )
        if not is_same:
            unknown = [p for p in _list_parameters(optimizer) if id(p) not in self._known]
        return any(map(_is_trained, unknown))

    def look_again(self, optimizer: Optimizer, waiting: Iterable[nn.Parameter]) -> None:
        """Get to know the parameters that are trained now, and forget those that have left.

        Args:
            optimizer: The optimizer.
            waiting: Parameters that can be pruned once they are trained; they are forgotten too.
        """
        known = self._known.keys() - {id(parameter) for parameter in waiting}
        held = _list_parameters(optimizer)
        self._known = {id(p): p for p in held if id(p) in known or _is_trained(p)}
        self._unknown = [p for p in held if id(p) not in self._known]
        self._held = [list(group["params"]) for group in optimizer.param_groups]


class Owners:
    """The optimizers of a training in their order, with the parameters that each of them trains.

    Args:
        optimizers: The optimizers, at a time when the tensors were just selected.

    Attributes:
        optimizers: The optimizers.
    """

    def __init__(self, optimizers: Sequence[Optimizer] = ()) -> None:
        self.optimizers = list(optimizers)
        self._ownerships = [Ownership(optimizer) for optimizer in optimizers]

    def index(self, optimizer: Optimizer) -> int:
        """Return the place of an optimizer.

        Raises:
            ValueError: If it is another one.
        """
        for index, known in enumerate(self.optimizers):
            if known is optimizer:
                return index
        raise ValueError("need one of the optimizers given to attach(), got another one")

    def has_grown(self, index: int) -> bool:
        """Whether an optimizer trains a parameter that it did not train before."""
        return self._ownerships[index].has_grown(self.optimizers[index])

    def look_again(self, waiting: Sequence[nn.Parameter]) -> None:
        """Get to know the parameters that are trained now.

        Args:
            waiting: Parameters that can be pruned once they are trained; they are forgotten.
        """
        for optimizer, ownership in zip(self.optimizers, self._ownerships, strict=True):
            ownership.look_again(optimizer, waiting)


def _list_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _is_trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and not is_lazy(parameter)
