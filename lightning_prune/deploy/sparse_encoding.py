"""The parts of a tensor in a sparse file: its nonzero values, and their places."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_prune.deploy.sparse_layout import (
    BLOCK,
    COUNTS,
    DTYPES,
    INDICES,
    MASK,
    PLAIN,
    VALUES,
    TensorSize,
    choose_encoding,
    dtype_name,
)
from lightning_prune.tensors.bits import pack_mask, unpack_mask

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def encode(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Return the tensors that a file holds in the place of a tensor, by keys of the file.

    Args:
        name: The name in the ``state_dict``.
        tensor: The tensor, on the CPU.
    """
    bits = tensor.flatten().view(_BITS[tensor.element_size()])
    mask = bits != 0
    size = TensorSize(name, tensor.dtype, tuple(tensor.shape), int(mask.count_nonzero()))
    encoding = choose_encoding(size)
    if encoding == "plain":
        return {PLAIN + name: tensor.clone(memory_format=torch.contiguous_format)}
    places = {MASK + name: pack_mask(mask)} if encoding == "mask" else _index(name, mask)
    return {**places, VALUES + name: bits[mask].view(tensor.dtype)}


def decode(name: str, entry: Mapping[str, Any], stored: dict[str, Tensor]) -> Tensor:
    """Return a tensor from its parts in a file, and remove these from ``stored``.

    Args:
        name: The name in the ``state_dict``.
        entry: The description in the metadata.
        stored: The tensors of the file.

    Raises:
        ValueError: If the parts do not fit one another.
        KeyError: If a part is missing.
    """
    dtype, shape = DTYPES[entry["dtype"]], torch.Size(entry["shape"])
    if PLAIN + name in stored:
        tensor = stored.pop(PLAIN + name)
        _check_type(name, tensor.dtype, dtype)
        if tensor.shape != shape:
            raise ValueError(f"'{name}' is {list(tensor.shape)} and should be {list(shape)}")
        return tensor.to(dtype, copy=True)  # the file is mapped, and may be overwritten
    if min(shape, default=0) < 0:
        raise ValueError(f"'{name}' has the shape {list(shape)}")
    entries, values = math.prod(shape), stored.pop(VALUES + name)
    _check_type(name, values.dtype, dtype)
    places = _read_mask(name, entries, stored) if MASK + name in stored else None
    if places is None:
        places = _read_indices(name, entries, stored)
    if list(values.shape) != [len(places)]:
        raise ValueError(f"'{name}' has {values.numel():,} values for {len(places):,} places")
    bits = torch.zeros(entries, dtype=_BITS[values.element_size()], device="cpu")
    bits[places] = values.view(bits.dtype)
    return bits.view(values.dtype).view(shape).to(dtype)


def _index(name: str, mask: Tensor) -> dict[str, Tensor]:
    """Return the number of values in each block, and their places in the block."""
    blocks = torch.nn.functional.pad(mask, (0, -len(mask) % BLOCK)).view(-1, BLOCK)
    indices = blocks.nonzero()[:, 1]
    return {
        COUNTS + name: blocks.sum(dim=1).to(torch.int16),
        INDICES + name: indices.to(torch.uint8),
    }


def _read_mask(name: str, entries: int, stored: dict[str, Tensor]) -> Tensor:
    """Return the places of the values from a mask."""
    bitmap = stored.pop(MASK + name)
    if bitmap.dtype != torch.uint8 or list(bitmap.shape) != [math.ceil(entries / 8)]:
        raise ValueError(f"the mask of '{name}' has not one bit for each of {entries:,} entries")
    return unpack_mask(bitmap, torch.Size([entries])).nonzero().flatten()


def _read_indices(name: str, entries: int, stored: dict[str, Tensor]) -> Tensor:
    """Return the places of the values from the counts of blocks and the indices in them."""
    counts, indices = stored.pop(COUNTS + name), stored.pop(INDICES + name)
    if counts.dtype != torch.int16 or list(counts.shape) != [math.ceil(entries / BLOCK)]:
        raise ValueError(f"'{name}' has not one count for each {BLOCK} of {entries:,} entries")
    if indices.dtype != torch.uint8 or indices.dim() != 1:
        raise ValueError(f"the indices of '{name}' are not a list of bytes")
    numbers = counts.long()
    if bool((numbers < 0).any()) or int(numbers.sum()) != len(indices):
        raise ValueError(f"the counts of '{name}' do not add up to {len(indices):,} indices")
    starts = torch.arange(len(numbers), device="cpu") * BLOCK
    places = starts.repeat_interleave(numbers) + indices.long()
    if bool((places.diff() <= 0).any()) or (len(places) and int(places[-1]) >= entries):
        raise ValueError(f"the indices of '{name}' do not rise to below {entries:,}")
    return places


def _check_type(name: str, found: torch.dtype, dtype: torch.dtype) -> None:
    """Raise ValueError if a tensor is neither in its own type nor rounded."""
    if found not in (dtype, torch.float16, torch.bfloat16):
        raise ValueError(
            f"'{name}' is stored as {dtype_name(found)}, and has the type {dtype_name(dtype)}"
        )
