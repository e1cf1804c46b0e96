"""The state of a Pruner: write it, check it, and restore tensors from it."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_prune.models.names import named_parameters
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.bits import compute_checksum, pack_mask, unpack_mask
from lightning_prune.tensors.shards import gather_whole

VERSION = 2
"""Version of the state; states of 0.1.0 have no version, and before 2 they have no checksums."""

_KEYS = {"steps", "due", "regrown", "masks", "shapes", "criterion", "observed"}
_BY_NAME = ("masks", "shapes", "observed", "checksums", "due", "regrown", "rest", "suspended")
_SHOWN = 60  # characters of a foreign state in an error
EMPTY_STATE: Mapping[str, Any] = {"masks": {}, "shapes": {}, "observed": {}}
"""The parts of a state that belong to tensors, without any tensor."""


def _check_state(state: Mapping[str, Any]) -> None:
    """Raise ValueError if a state is not of a Pruner, is of a later version, or is damaged."""
    if not isinstance(state, Mapping):
        raise ValueError(f"need the state of a Pruner, got {str(state)[:_SHOWN]!r}")
    version = state.get("version", 0)
    if not isinstance(version, int) or version > VERSION:
        raise ValueError(
            f"need a state of version {VERSION} or earlier, got version={version}; update "
            "lightning_prune"
        )
    keys = _KEYS | {"checksums"} if version >= 2 else _KEYS
    if missing := keys - set(state):
        raise ValueError(f"need the state of a Pruner, got a state without {sorted(missing)}")
    if wrong := [key for key in _BY_NAME if not isinstance(state.get(key, {}), Mapping)]:
        raise ValueError(f"need the state of a Pruner, got other values than mappings in {wrong}")
    found = {name: _find_damage(name, state) for name in state["masks"]}
    if damage := "; ".join(f"{why} for '{name}'" for name, why in found.items() if why):
        raise ValueError(
            f"need an undamaged state, got {damage}; go on from another checkpoint, or start anew "
            "from the weights with keep_zeros=True"
        )


def copy_state(state: Mapping[str, Any], criterion: str) -> dict[str, Any]:
    """Return a checked state; statistics of another criterion mean nothing and are left out.

    Args:
        state: The state of a Pruner.
        criterion: The class of the present criterion.

    Raises:
        ValueError: If it is not the state of a Pruner, of a later version, or damaged.
    """
    _check_state(state)
    return {**state, "observed": state["observed"] if state["criterion"] == criterion else {}}


def _find_damage(name: str, state: Mapping[str, Any]) -> str | None:
    """Return what is wrong with the saved mask and statistics of a tensor; None if nothing is."""
    mask, shape = state["masks"][name], state["shapes"].get(name)
    if shape is None:
        return "a mask without a shape"
    if not isinstance(mask, Tensor) or mask.dtype != torch.uint8:
        return f"a mask of {mask.dtype if isinstance(mask, Tensor) else type(mask)}, not of bytes"
    size = math.ceil(math.prod(shape) / 8)
    if mask.shape != (size,):
        return f"a mask of shape {list(mask.shape)}, where {shape} weights take {size} bytes"
    if state.get("version", 0) >= 2 and state["checksums"].get(name) != compute_checksum(mask):
        return "a mask that does not fit its checksum"
    statistics = state["observed"].get(name, {})
    if not all(isinstance(value, Tensor) for value in statistics.values()):
        return "statistics that are no tensors"
    suspended = state.get("suspended", {}).get(name)
    if suspended is not None and (not isinstance(suspended, Tensor) or suspended.shape != (size,)):
        return "another suspended mask than of bytes"
    rest = state.get("rest", {}).get(name)
    if rest is not None:
        pruned = int((~unpack_mask(mask, torch.Size(shape))).count_nonzero())
        if not isinstance(rest, Tensor) or rest.shape != (pruned,):
            return f"other values than those of {pruned} pruned weights"
    return None


def describe_tensors(tensors: Iterable[PrunedTensor], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Return the masks, shapes and states of tensors, by name.

    Args:
        tensors: The tensors; if they are sharded, all processes must call this together.
        earlier: Masks, shapes and statistics of other tensors, which go into the result.
    """
    tensors = list(tensors)
    masks = {t.name: pack_mask(gather_whole(t.mask.kept, t.shard)) for t in tensors}
    shapes = {tensor.name: list(tensor.parameter.shape) for tensor in tensors}
    observed = {tensor.name: _gather_state(tensor) for tensor in tensors}
    masks = earlier["masks"] | masks
    return {
        "masks": masks,
        "checksums": {name: compute_checksum(mask) for name, mask in masks.items()},
        "shapes": earlier["shapes"] | shapes,
        "observed": earlier["observed"] | observed,
        "rest": _describe_rest(tensors, earlier),
        "suspended": _describe_suspended(tensors, earlier),
    }


def _gather_state(tensor: PrunedTensor) -> dict[str, Tensor]:
    """Return what the criterion has gathered of a whole tensor; of shards on the CPU."""
    if tensor.shard is None:
        return dict(tensor.state)
    by_weight = tensor.state_by_weight
    return {
        key: (gather_whole(value, tensor.shard) if key in by_weight else value).cpu()
        for key, value in sorted(tensor.state.items())
    }


def _describe_rest(
    tensors: Iterable[PrunedTensor], earlier: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the values of pruned weights in the order of their indices."""
    saved = earlier.get("rest", {})
    rest = {name: values for name, values in saved.items() if name in earlier["masks"]}
    for tensor in tensors:
        if tensor.rest is not None:
            kept = gather_whole(tensor.mask.kept, tensor.shard)
            rest[tensor.name] = gather_whole(tensor.rest, tensor.shard)[~kept].cpu()
    return rest


def _describe_suspended(
    tensors: Iterable[PrunedTensor], earlier: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the masks that a dense phase suspends."""
    saved = earlier.get("suspended", {})
    suspended = {name: mask for name, mask in saved.items() if name in earlier["masks"]}
    for tensor in tensors:
        if tensor.suspended is not None:
            suspended[tensor.name] = pack_mask(gather_whole(tensor.suspended, tensor.shard))
    return suspended


def _restore_rest(tensor: PrunedTensor, kept: Tensor, state: Mapping[str, Any]) -> None:
    """Give a tensor the saved values of pruned weights; without them pruned weights start at 0."""
    values = state.get("rest", {}).get(tensor.name)
    if tensor.rest is None or values is None:
        return
    whole = torch.zeros(kept.shape, dtype=tensor.rest.dtype, device=kept.device)
    whole[~kept] = values.to(kept.device, tensor.rest.dtype)
    tensor.rest.copy_(tensor.shard.cut(whole) if tensor.shard else whole)


def restore_tensor(tensor: PrunedTensor, state: Mapping[str, Any]) -> None:
    """Give a tensor the mask and the gathered state from a saved state."""
    device = tensor.mask.device
    whole = unpack_mask(state["masks"][tensor.name], tensor.parameter.shape)
    tensor.prune_to((tensor.shard.cut(whole) if tensor.shard else whole).to(device))
    _restore_rest(tensor, whole, state)
    suspended = state.get("suspended", {}).get(tensor.name)
    if suspended is not None:
        whole = unpack_mask(suspended, tensor.parameter.shape)
        tensor.suspended = (tensor.shard.cut(whole) if tensor.shard else whole).to(device)
    tensor.state = {}
    for key, value in state["observed"].get(tensor.name, {}).items():
        if tensor.shard is not None and key in tensor.state_by_weight:
            value = tensor.shard.cut(value)
        tensor.state[key] = value.to(device, copy=True)


def return_tensor(tensor: PrunedTensor, state: Mapping[str, Any]) -> None:
    """Give a tensor the mask and the gathered state that it had in an earlier state.

    A tensor without a mask in the state becomes dense.
    """
    tensor.keep_all()
    tensor.forget_seen()
    tensor.state = {}
    if tensor.name in state["masks"]:
        restore_tensor(tensor, state)


def keep_masks(state: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Return a state with the masks of these tensors only, with their shapes and statistics."""
    kept = {
        key: {name: value for name, value in state[key].items() if name in names}
        for key in EMPTY_STATE
    }
    return {**state, **kept}


def keep_only_masks(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state for a new training with the same masks."""
    return {**state, "steps": [], "due": {}, "regrown": {}, "observed": {}}


def refuse_foreign_masks(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError if a mask of the state has no parameter of the same shape in the model."""
    parameters = named_parameters(model)
    differences = []
    for name, shape in state["shapes"].items():
        parameter = parameters.get(name)
        if parameter is None:
            differences.append(f"'{name}' is {shape} in the state and absent in the model")
        elif not is_lazy(parameter) and list(parameter.shape) != shape:
            found = list(parameter.shape)
            differences.append(f"'{name}' is {shape} in the state and {found} in the model")
    if differences:
        raise ValueError(f"need masks that fit the model, got {'; '.join(differences)}")
