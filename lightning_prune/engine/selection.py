"""Which tensors of a model are pruned at all, and why the others are not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.engine.groups import Group
from lightning_prune.models.prunable import Found, find_parameters, output_axis, why_unusual
from lightning_prune.recipe.targets import as_yaml
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import local, shard_of

_LISTED_NAMES = 40


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is pruned and what stays dense, and why.

    Args:
        names: All parameters, in the order of the model.
        tensors: The tensors to prune, in that order.
        dense: For every other parameter the reason, by name; for channels also for one of which
            only the inputs are pruned.
        waiting: Whether some of the dense ones may still join, when they are unfrozen, initialised
            or given to an optimizer.
        groups: What of the tensors is ranked together.
        entries: Number of entries of all parameters.
    """

    names: tuple[str, ...] = ()
    tensors: tuple[PrunedTensor, ...] = ()
    dense: Mapping[str, str] = field(default_factory=dict)
    waiting: bool = False
    groups: tuple[Group, ...] = ()
    entries: int = 0


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A parameter, and whether it is to be pruned.

    Args:
        name: Its first name.
        names: All its names.
        parameter: The parameter itself.
        owner: The module where it hangs, under its first name.
        glob: The glob that decides on it; empty if none matches.
        sparsity: Its final sparsity; 0 if it has none.
        optimizer: Index of the optimizer that owns it; -1 for none.
        why_dense: Why it is not chosen; None if it is.
        why_unready: Why it could not be pruned now, chosen or not; None if it could.
    """

    name: str
    names: tuple[str, ...]
    parameter: nn.Parameter
    owner: nn.Module
    glob: str
    sparsity: float
    optimizer: int
    why_dense: str | None
    why_unready: str | None

    def tensor(self) -> PrunedTensor:
        """Return it as a tensor under pruning; if it is not chosen, it only follows others."""
        return PrunedTensor(
            name=self.name,
            parameter=self.parameter,
            owner=self.owner,
            sparsity=self.sparsity,
            glob=self.glob,
            optimizer=self.optimizer,
            output_axis=output_axis(self.parameter, self.owner),
            masking=Mask(torch.tensor(True), local(self.parameter)),
            shard=shard_of(self.parameter),
            follows=self.why_dense is not None,
        )


def select(
    module: nn.Module, optimizers: Sequence[Optimizer], sparsity: Mapping[str, float | None]
) -> Selection:
    """Choose the tensors to prune.

    By default those are the trainable floating-point parameters that an optimizer owns, named
    ``*weight*``, with two or more dimensions, whose owners are neither embeddings nor
    normalisations. The globs (``fnmatchcase``, of parameter or module names) choose among them and
    the last that matches decides. A glob that matches none of them is tried against all parameters.

    Args:
        module: The model.
        optimizers: What trains it.
        sparsity: Final sparsity, or None for dense, by glob.

    Raises:
        ValueError: If a glob matches nothing, or only parameters that are not floating-point.
    """
    found = candidates(module, optimizers, sparsity)
    reasons = {one.name: one.why_dense or one.why_unready for one in found}
    return Selection(
        names=tuple(reasons),
        tensors=tuple(one.tensor() for one in found if not reasons[one.name]),
        dense={name: why for name, why in reasons.items() if why},
        waiting=any(not one.why_dense and one.why_unready for one in found),
        entries=entries(found),
    )


def candidates(
    module: nn.Module, optimizers: Sequence[Optimizer], sparsity: Mapping[str, float | None]
) -> list[Candidate]:
    """Return every parameter with what decides on it, in the order of the model.

    The arguments and the errors are those of `select`.
    """
    owner_of = {
        id(parameter): index
        for index, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    found = find_parameters(module)
    unusual = {name: why_unusual(*entry) for name, entry in found.items()}
    deciding = _deciding_globs(found, [name for name in found if not unusual[name]], sparsity)
    chosen = []
    for name, (parameter, places) in found.items():
        glob = deciding.get(name)
        target = None if glob is None else sparsity[glob]
        why_dense = None if target is not None else "sparsity null"
        chosen.append(
            Candidate(
                name=name,
                names=tuple(place.name for place in places),
                parameter=parameter,
                owner=places[0].owner,
                glob=glob or "",
                sparsity=target or 0.0,
                optimizer=owner_of.get(id(parameter), -1),
                why_dense=unusual[name] or "no glob matches" if glob is None else why_dense,
                why_unready=_why_unready(parameter, owner_of),
            )
        )
    return chosen


def entries(found: Iterable[Candidate]) -> int:
    """Return how many entries parameters have together, without those that have no shape yet."""
    return sum(one.parameter.numel() for one in found if not is_lazy(one.parameter))


def _why_unready(parameter: nn.Parameter, owner_of: Mapping[int, int]) -> str | None:
    """Return why a parameter cannot be pruned now, though it is chosen; None if it can."""
    if is_lazy(parameter):
        return "not initialised yet"
    if not parameter.requires_grad:
        return "frozen"
    if id(parameter) not in owner_of:
        return "no optimizer owns it"
    if parameter.numel() == 0:
        return "empty"
    return None


def _deciding_globs(
    found: Found, usual: Sequence[str], sparsity: Mapping[str, float | None]
) -> dict[str, str]:
    """Return the glob that decides on each parameter that any matches."""
    deciding: dict[str, str] = {}
    for glob in sparsity:

        def matching(names: Iterable[str], glob: str = glob) -> list[str]:
            return [n for n in names if any(place.matches(glob) for place in found[n][1])]

        matched = matching(usual)
        if not matched and glob != "*":
            matched = matching(found)
            if not matched:
                raise ValueError(
                    f"need a glob that matches a parameter or module, got sparsity={{{glob!r}: "
                    f"{as_yaml(sparsity[glob])}}}; prunable by default are {_listed(usual)}"
                )
            if not any(is_lazy(found[n][0]) or found[n][0].is_floating_point() for n in matched):
                raise ValueError(
                    f"need floating-point parameters, got sparsity={{{glob!r}: "
                    f"{as_yaml(sparsity[glob])}}} for {_listed(matched)} of "
                    f"{found[matched[0]][0].dtype}"
                )
        deciding.update(dict.fromkeys(matched, glob))
    return deciding


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:_LISTED_NAMES])
    rest = len(names) - _LISTED_NAMES
    return f"{shown} and {rest} more" if rest > 0 else shown or "none"
