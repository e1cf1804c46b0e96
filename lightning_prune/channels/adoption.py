"""Shrunk modules as states, and new modules that adopt such a state."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.channels.absent import Absence, find_absences, put_absences
from lightning_prune.channels.attention import has_whole_heads, slim_attention
from lightning_prune.channels.numbers import Setting, find_numbers, find_set_numbers, set_numbers
from lightning_prune.channels.removal import put_tensors
from lightning_prune.channels.torch_layers import fit_layer, has_fitting_tensors
from lightning_prune.models.calls import make_call
from lightning_prune.models.comparison import describe_failure
from lightning_prune.models.compiled import copy_module
from lightning_prune.models.errors import describe_error
from lightning_prune.models.names import named_modules, named_tensors, plain_name

_VERSION, _OF_ALL_NUMBERS = 2, 1


@check_arguments
def shrunk_state(module: nn.Module) -> dict[str, Any]:
    """Return the weights of a module with all that `adopt` needs to load them into a dense module.

    It holds tensors, numbers and strings, so that it loads with ``weights_only=True``. The numbers
    are those that `shrink` has changed in the code of the module, such as numbers of heads.
    """
    return {
        "state_dict": module.state_dict(),
        "shrunk_attributes": find_set_numbers(module),
        "shrunk_modules": find_absences(module),
        "shrunk_version": _VERSION,
    }


@check_arguments
def adopt(module: nn.Module, state: Mapping[str, Any]) -> None:
    """Give a module the shapes and the weights of a shrunk one of the same class.

    The state may come from anywhere: it is checked against the module before the module changes.
    No shape or number may be larger than in the module, and the smaller layers must fit together.
    If the module has an ``example_input_array``, ``forward`` is tried on a copy. All attributes but
    the numbers that `shrink` has changed stay as the constructor has set them.

    Args:
        module: A new instance, as its constructor makes it. It stays as it is on an error.
        state: The result of `shrunk_state`.

    Raises:
        ValueError: If the state is not that of a shrunk module of this class.
    """
    absences = _read_absences(module, state)
    fresh = copy_module(module)
    put_absences(fresh, absences)
    weights = _read_weights(fresh, state)
    settings = _read_settings(fresh, state, weights)
    trial = copy_module(fresh)
    try:
        _load(trial, weights, settings)
    except Exception as error:
        raise ValueError(
            f"need weights that load into a {type(module).__name__}, got {describe_error(error)}"
        ) from error
    _check_layers(trial, fresh)
    _check_forward(trial, module)
    put_absences(module, absences)
    _load(module, weights, settings)


def _load(module: nn.Module, weights: Mapping[str, Any], settings: Iterable[Setting]) -> None:
    """Give a module shapes, weights and numbers, which have been checked."""
    tensors = named_tensors(module)
    shapes = {
        name: tensor.new_empty(weights[name].shape)
        for name, tensor in tensors.items()
        if name in weights and tensor.shape != weights[name].shape
    }
    put_tensors(module, shapes)
    slim_attention(module)
    set_numbers(module, settings)
    for child in module.modules():
        fit_layer(child)
    module.load_state_dict(
        {raw: weights[plain_name(raw)] for raw in module.state_dict()}, strict=True
    )


# -- checks of the state -------------------------------------------------------------------------


def _read_absences(module: nn.Module, state: Mapping[str, Any]) -> list[Absence]:
    """Return the modules that removed branches have left out; none for the module itself."""
    if not isinstance(state, Mapping) or not isinstance(state.get("shrunk_modules", {}), Mapping):
        raise ValueError("need the result of shrunk_state, got one with other modules left out")
    children = named_modules(module)
    absences = []
    for name, outputs in state.get("shrunk_modules", {}).items():
        if not name or name not in children or not isinstance(outputs, str):
            raise ValueError(f"need modules to leave out that the module has, got {name!r}")
        absences.append(Absence(module=name, outputs=outputs))
    return absences


def _read_weights(module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights by plain names; no tensor is larger than that of the module."""
    for key in ("state_dict", "shrunk_attributes"):
        if not isinstance(state, Mapping) or not isinstance(state.get(key), Mapping):
            raise ValueError(f"need the result of shrunk_state, got a state without '{key}'")
    weights = {plain_name(str(name)): weight for name, weight in state["state_dict"].items()}
    persistent = {plain_name(name) for name in module.state_dict()}
    if foreign := sorted(set(weights) ^ persistent):
        raise ValueError(
            "need the state of a module of the same class, got one that differs in "
            + ", ".join(f"'{name}'" for name in foreign[:6])
        )
    tensors = named_tensors(module, remove_duplicate=False)
    shapes: dict[int, torch.Size] = {}
    for name, tensor in tensors.items():
        if name in weights:
            _check_weight(name, weights[name], tensor)
            shape = weights[name].shape
            if shapes.setdefault(id(tensor), shape) != shape:
                raise ValueError(f"need one shape for a shared tensor, got another for '{name}'")
    return weights


def _check_weight(name: str, weight: object, fresh: Tensor) -> None:
    """Raise ValueError unless a weight can be that of a smaller tensor."""
    if not isinstance(weight, Tensor) or weight.layout != torch.strided:
        raise ValueError(f"need plain tensors in a shrunk state, got another value for '{name}'")
    found, largest = tuple(weight.shape), tuple(fresh.shape)
    if len(found) != len(largest) or any(
        not min(own, 1) <= size <= own for size, own in zip(found, largest, strict=True)
    ):
        raise ValueError(f"need shapes of at most {largest} for '{name}', got {found}")
    if weight.dtype != fresh.dtype and not (
        weight.is_floating_point() and fresh.is_floating_point()
    ):
        raise ValueError(f"need {fresh.dtype} for '{name}', got {weight.dtype}")


def _read_settings(
    module: nn.Module, state: Mapping[str, Any], weights: Mapping[str, Any]
) -> list[Setting]:
    """Return the numbers that removal has changed; none is larger than that of the module."""
    version = state.get("shrunk_version", _OF_ALL_NUMBERS)
    if version not in (_OF_ALL_NUMBERS, _VERSION):
        raise ValueError(f"need a state of version {_VERSION} or less, got {version!r}")
    children = named_modules(module)
    settings = []
    for name, numbers in state["shrunk_attributes"].items():
        if name not in children or not isinstance(numbers, Mapping):
            raise ValueError(f"need numbers for parts of the module, got {name!r}")
        own = find_numbers(children[name])
        for attribute, value in numbers.items():
            where = f"'{name}.{attribute}'".replace("'.", "'")
            if type(value) is not int:
                raise ValueError(f"need whole numbers, got {where}={value!r}")
            if version == _OF_ALL_NUMBERS:
                if not _is_explained(value, own.get(attribute), name, module, weights):
                    continue
            elif attribute not in own:
                raise ValueError(f"need numbers that the module has, got {where}={value}")
            elif not 1 <= value <= own[attribute]:
                raise ValueError(f"need 1 <= {where} <= {own[attribute]}, got {value}")
            settings.append(Setting(name, attribute, value))
    if settings and not any(True for _ in _find_smaller_axes(module, weights)):
        raise ValueError("need smaller weights where numbers are smaller, got those of the module")
    return settings


def _is_explained(
    value: int, own: int | None, name: str, module: nn.Module, weights: Mapping[str, Any]
) -> bool:
    """Whether a number of version 0.1.0, which saved all numbers, shrinks as a weight does.

    The other numbers are not those of removal. The constructor has set them.
    """
    return (
        own is not None
        and 1 <= value < own
        and any(
            parameter.startswith(f"{name}." if name else "") and before * value == after * own
            for parameter, before, after in _find_smaller_axes(module, weights)
        )
    )


def _find_smaller_axes(
    module: nn.Module, weights: Mapping[str, Any]
) -> Iterator[tuple[str, int, int]]:
    """Yield the name of a tensor, with both lengths of an axis that is shorter in the state."""
    for name, tensor in named_tensors(module).items():
        if name in weights:
            for before, after in zip(tensor.shape, weights[name].shape, strict=True):
                if after < before:
                    yield name, before, after


# -- checks of a copy that has adopted -----------------------------------------------------------


def _check_layers(trial: nn.Module, fresh: nn.Module) -> None:
    """Raise ValueError unless the tensors of each layer have the sizes of each other."""
    before = named_modules(fresh)
    for name, child in named_modules(trial).items():
        if not has_fitting_tensors(child, before[name]) or not has_whole_heads(child):
            shapes = {key: tuple(tensor.shape) for key, tensor in child.named_parameters()}
            raise ValueError(f"need tensors that fit together in '{name}', got shapes {shapes}")


def _check_forward(trial: nn.Module, fresh: nn.Module) -> None:
    """Raise ValueError if ``forward`` takes the example of the module, but not in the copy."""
    if getattr(fresh, "example_input_array", None) is None:
        return
    call = make_call(fresh)
    if describe_failure(fresh, call) is None and (why := describe_failure(trial, call)):
        raise ValueError(f"need layers that fit together, got a forward that fails: {why}")
