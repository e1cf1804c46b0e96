"""Whether a checkpoint holds the weights that were saved with the masks.

A distributed checkpoint is a folder with a file for each process, and a file for all other states.
Lightning overwrites the files in place, one after another. If that is interrupted, the folder loads
as a mixture of two steps.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.models.names import named_parameters
from lightning_prune.models.sharding import reshard
from lightning_prune.recipe.tensor import PrunedTensor
from lightning_prune.tensors.digests import digest_weights
from lightning_prune.tensors.shards import Shard, find_shard, local_part, sum_by_tensor


def describe_shards(tensors: Iterable[PrunedTensor]) -> dict[str, Any]:
    """Return the digests and dtypes of all sharded tensors by name; nothing if no tensor is.

    All processes must call this together.
    """
    sharded = [tensor for tensor in tensors if tensor.shard is not None]
    if not sharded:
        return {}
    digests = _sum_digests([(tensor.weights, tensor.shard) for tensor in sharded])
    described = {
        tensor.name: {"digest": digest, "dtype": str(tensor.parameter.dtype).removeprefix("torch.")}
        for tensor, digest in zip(sharded, digests, strict=True)
    }
    return {"digests": described}


def refuse_other_weights(state: Mapping[str, Any], model: nn.Module) -> None:
    """Raise ValueError, naming the tensors, if weights are not those of the digests in a state.

    Weights are not compared if the model holds them in a precision that loses bits. All processes
    must call this together.
    """
    saved = state.get("digests", {})
    if not saved:
        return
    reshard(model)
    parts = {}
    for name, parameter in named_parameters(model).items():
        # A parameter of another shape is refused with its mask.
        if name not in saved or list(parameter.shape) != state["shapes"][name]:
            continue
        dtype = getattr(torch, saved[name]["dtype"])
        if torch.promote_types(parameter.dtype, dtype) == parameter.dtype:
            parts[name] = local_part(parameter).to(dtype), find_shard(parameter)
    digests = zip(parts, _sum_digests(list(parts.values())), strict=True)
    if others := [repr(name) for name, digest in digests if digest != saved[name]["digest"]]:
        raise ValueError(
            f"need the weights that were saved with the masks, got others in {', '.join(others)} "
            f"of the checkpoint of steps {state['steps']}: a save into the same folder was "
            "interrupted, or weights were changed on loading; resume from another checkpoint, or, "
            "if the change is on purpose, take 'digests' out of the callback's state in "
            "on_load_checkpoint"
        )


def _sum_digests(parts: list[tuple[Tensor, Shard | None]]) -> list[int]:
    """Return the digest of each whole tensor."""
    if not parts:
        return []
    local = [(digest_weights(values, shard).cpu(), shard) for values, shard in parts]
    return sum_by_tensor(local).tolist()
