"""Candidates: every parameter of a model, with the reason why it is pruned or stays dense."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import accumulate

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_prune.engine.extents import Product
from lightning_prune.engine.groups import Group
from lightning_prune.models.experts import find_input_axis, is_fused
from lightning_prune.models.names import list_names
from lightning_prune.models.parametrizations import Effect
from lightning_prune.models.prunable import (
    Found,
    Place,
    find_parameters,
    judge_zeros,
    output_axis,
    why_unusual,
)
from lightning_prune.models.sharding import check_chunks
from lightning_prune.recipe.targets import format_target, format_targets
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.shards import find_shard, local_part

FROZEN, UNOWNED = "frozen", "no optimizer owns it"
"""The reasons why no optimizer trains a parameter."""

_LISTED_NAMES = 40


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The tensors to prune, and the reasons why other parameters stay dense.

    Args:
        names: Names of all parameters, in the order of the model.
        tensors: The tensors to prune, in the order of the model.
        dense: The reason for every other parameter, by name. A tensor can have a reason too, if
            the output channels stay dense while the input channels are pruned.
        unready: Names of the dense parameters that may join later, when the user unfreezes them,
            initializes them or gives them to an optimizer.
        groups: The groups of the tensors.
        sizes: Number of weights of each parameter that has a shape, by name.
        products: The products that the model computes, if channels have been followed through it.
    """

    names: tuple[str, ...] = ()
    tensors: tuple[PrunedTensor, ...] = ()
    dense: Mapping[str, str] = field(default_factory=dict)
    unready: frozenset[str] = frozenset()
    groups: tuple[Group, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    products: tuple[Product, ...] = ()

    @property
    def may_grow(self) -> bool:
        """Whether dense parameters may join later."""
        return bool(self.unready)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A parameter, with the decision whether to prune the parameter.

    Args:
        name: First name of the parameter.
        names: All names of the parameter.
        parameter: The parameter.
        owner: The module that holds the parameter under the first name.
        is_fused: Whether the parameter holds a matrix for each expert.
        glob: The last glob that matches; empty if no glob matches.
        sparsity: Final sparsity; 0 for a dense parameter.
        optimizer: Index of the optimizer that owns the parameter; 0 for no owner, because the first
            optimizer is then the clock.
        why_dense: Why the recipe leaves the parameter dense; None if it does not.
        why_unready: Why the parameter cannot be pruned now, chosen or not; None if it can.
        why_untrained: Why no optimizer trains the parameter; None if an optimizer does.
        row_axes: Axes of the parameter whose every index keeps a weight; None if all may go.
    """

    name: str
    names: tuple[str, ...]
    parameter: nn.Parameter
    owner: nn.Module
    is_fused: bool
    glob: str
    sparsity: float
    optimizer: int
    why_dense: str | None
    why_unready: str | None
    row_axes: tuple[int, ...] | None
    why_untrained: str | None

    @property
    def is_named(self) -> bool:
        """Whether the deciding glob names the parameter: then it is pruned even if untrained."""
        return self.glob not in ("", "*")

    def make_tensor(self) -> PrunedTensor:
        """Return the tensor under pruning; the criterion scores only chosen parameters."""
        check_chunks(self.parameter)
        axis = output_axis(self.parameter, self.owner)
        swapped = {0: axis, axis: 0}
        rows = self.row_axes
        return PrunedTensor(
            name=self.name,
            parameter=self.parameter,
            owner=self.owner,
            sparsity=self.sparsity,
            glob=self.glob,
            optimizer=self.optimizer,
            output_axis=axis,
            is_fused=self.is_fused,
            input_axis=find_input_axis(self.parameter, self.owner) if self.is_fused else None,
            mask=Mask(torch.tensor(True, device="cpu"), local_part(self.parameter)),
            shard=find_shard(self.parameter),
            row_axes=None if rows is None else tuple(swapped.get(each, each) for each in rows),
            is_scored=self.why_dense is None,
            is_trained=self.why_untrained is None,
        )


def find_candidates(
    module: nn.Module, optimizers: Sequence[Optimizer], sparsity: Mapping[str, float | None]
) -> list[Candidate]:
    """Return every parameter with the last glob that matches, in the order of the model.

    Args:
        module: The model.
        optimizers: The optimizers of the model.
        sparsity: Final sparsity, or None for dense, by glob.

    Raises:
        ValueError: If a glob matches nothing, or prunes parameters that are not floating-point, or
            parameters whose zeros do not reach the weight.
    """
    owner_of = _find_owners(optimizers)
    found = find_parameters(module)
    unusual = {name: why_unusual(*place) for name, place in found.items()}
    effects = {name: judge_zeros(places) for name, (_, places) in found.items()}
    deciding = _find_deciding_globs(found, [name for name in found if not unusual[name]], sparsity)
    _refuse_lost_zeros(effects, deciding, sparsity)
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
                is_fused=_is_fused(parameter, places[0]),
                glob=glob or "",
                sparsity=target or 0.0,
                optimizer=owner_of.get(id(parameter), 0),
                why_dense=unusual[name] or "no glob matches" if glob is None else why_dense,
                why_unready=_explain_unready(parameter, optimizers),
                why_untrained=_explain_untrained(parameter, owner_of),
                row_axes=effects[name].row_axes,
            )
        )
    return chosen


def _find_owners(optimizers: Sequence[Optimizer]) -> dict[int, int]:
    """Return the index of the optimizer that owns a parameter, by the parameter's id."""
    return {
        id(parameter): index
        for index, optimizer in enumerate(optimizers)
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def count_weights(found: Iterable[Candidate]) -> dict[str, int]:
    """Count the weights of each parameter that has a shape."""
    return {each.name: each.parameter.numel() for each in found if not is_lazy(each.parameter)}


def _is_fused(parameter: nn.Parameter, place: Place) -> bool:
    return not is_lazy(parameter) and is_fused(parameter, place.owner, place.descent)


def _explain_unready(parameter: nn.Parameter, optimizers: Sequence[Optimizer]) -> str | None:
    """Return why a parameter cannot be pruned now; None if it can."""
    if is_lazy(parameter):
        return "not initialized yet"
    if not optimizers:
        return "no optimizer counts steps"
    if parameter.numel() == 0:
        return "empty"
    return None


def _explain_untrained(parameter: nn.Parameter, owner_of: Mapping[int, int]) -> str | None:
    """Return why no optimizer trains a parameter; None if an optimizer does."""
    if not parameter.requires_grad:
        return FROZEN
    if id(parameter) not in owner_of:
        return UNOWNED
    return None


def _find_deciding_globs(
    found: Found, usual: Sequence[str], sparsity: Mapping[str, float | None]
) -> dict[str, str]:
    """Return the last glob that matches each parameter, by the name of the parameter."""
    deciding: dict[str, str] = {}
    for glob in sparsity:
        matched = _match(glob, usual, found)
        if not matched and glob != "*":
            matched = _match(glob, found, found)
            _check_match(glob, matched, found, usual, sparsity)
        deciding.update(dict.fromkeys(matched, glob))
    return deciding


def _refuse_lost_zeros(
    effects: Mapping[str, Effect], deciding: Mapping[str, str], sparsity: Mapping[str, float | None]
) -> None:
    """Raise ValueError if the user names parameters whose zeros are not those of the weight.

    Args:
        effects: The effect of zeros in each parameter on the weight, by name.
        deciding: The last glob that matches each parameter.
        sparsity: Final sparsity, or None for dense, by glob.
    """
    named = [
        name
        for name, glob in deciding.items()
        if effects[name].why_lost and sparsity[glob] is not None
    ]
    if named:
        got = ", ".join(f"'{name}' ({effects[name].why_lost})" for name in named)
        lines = format_targets({**sparsity, **dict.fromkeys(named)})
        raise ValueError(
            f"need parameters whose zeros are those of the weight, got {got}; to leave that dense, "
            f"write\n{lines}"
        )


def _match(glob: str, names: Iterable[str], found: Found) -> list[str]:
    return [name for name in names if any(place.matches(glob) for place in found[name][1])]


def _check_match(
    glob: str,
    matched: Sequence[str],
    found: Found,
    usual: Sequence[str],
    sparsity: Mapping[str, float | None],
) -> None:
    """Raise ValueError if a glob matches nothing, or prunes parameters that are not floats."""
    given = f"sparsity={{{glob!r}: {format_target(sparsity[glob])}}}"
    if not matched:
        raise ValueError(
            f"need a glob that matches a parameter or module, got {given}; prunable by default are "
            f"{_quote_names(usual)}{_suggest_glob(glob, found)}"
        )
    codes = {name: found[name][0] for name in matched}
    codes = {name: p for name, p in codes.items() if not (is_lazy(p) or p.is_floating_point())}
    if codes and sparsity[glob] is not None:
        raise ValueError(
            f"need floating-point parameters, got {given} for {_quote_names(list(codes))} of "
            f"{next(iter(codes.values())).dtype}"
        )


def _suggest_glob(glob: str, found: Found) -> str:
    """Return the end of an error with the glob that the user may have meant; empty for no guess."""
    written = glob.strip("*.")
    parts = [name.split(".") for name in found]
    names = {begin for name in parts for begin in accumulate(name, "{}.{}".format)}
    names |= {".".join(name[start:]) for name in parts for start in range(len(name))}
    names |= {part for name in parts for part in name}
    for close in get_close_matches(written, sorted(names)):
        meant = glob.replace(written, close)
        if _match(meant, found, found):
            return f"; did you mean '{meant}'?"
    return ""


def _quote_names(names: Sequence[str]) -> str:
    return list_names([f"'{name}'" for name in names], _LISTED_NAMES) or "none"
