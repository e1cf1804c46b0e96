"""The layout of a sparse file, and the bytes that the file takes."""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

FORMAT, VERSION = "lightning_prune.sparse", "2"
PLAIN, MASK, COUNTS, INDICES, VALUES = "plain/", "mask/", "counts/", "indices/", "values/"
BLOCK = 256
"""Number of entries in a block, so that a byte is the index of an entry in the block."""

# Safetensors writes the types in this order, each with a code.
_CODES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: place for place, dtype in enumerate(_CODES)}
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _CODES}
"""The types that a file can hold, by name."""

_HEADER_ENTRY = 112  # the most characters that another key adds to the header, besides the name
_DIGEST = "0" * 64


Encoding = Literal["plain", "mask", "indices"]
"""How a file holds a tensor: all values; or the nonzero values, with their places."""


class TensorSize(NamedTuple):
    """What decides how many bytes of a sparse file a tensor takes.

    Attributes:
        name: The name in the ``state_dict``.
        dtype: The type in the file.
        shape: The shape.
        nonzero: Number of entries that are not zero.
        same_as: The name of an earlier tensor, to which this tensor is tied; None without a tie.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nonzero: int
    same_as: str | None = None


def choose_encoding(size: TensorSize) -> Encoding:
    r"""Return how a tensor with :math:`N` entries, :math:`k` of them not zero, takes least.

    Beside the values, a mask takes :math:`\lceil N / 8 \rceil` bytes. Indices take
    :math:`2 \lceil N / 256 \rceil + k`, which is less from about 0.88 of zeros on. Another entry
    in the header counts, too. So a file never grows with more zeros.

    Examples:
        >>> sizes = [TensorSize("a", torch.float32, (32, 256), n) for n in (8000, 1024, 512)]
        >>> [choose_encoding(size) for size in sizes]
        ['plain', 'mask', 'indices']
    """
    entries, entry = math.prod(size.shape), _HEADER_ENTRY + len(json.dumps(size.name))
    values = size.nonzero * size.dtype.itemsize
    taken: dict[Encoding, int] = {
        "plain": entries * size.dtype.itemsize,
        "mask": math.ceil(entries / 8) + values + entry,
        "indices": 2 * math.ceil(entries / BLOCK) + size.nonzero + values + 2 * entry,
    }
    return min(taken, key=lambda encoding: taken[encoding])


def describe(size: TensorSize) -> dict[str, Any]:
    """Return the description of a tensor in the metadata."""
    if size.same_as is not None:
        return {"same_as": size.same_as}
    return {"dtype": dtype_name(size.dtype), "shape": list(size.shape)}


def make_metadata(description: str, checksum: str) -> dict[str, str]:
    """Return the metadata of a file.

    Args:
        description: The descriptions of all tensors, in JSON.
        checksum: 64 characters.
    """
    return {"format": FORMAT, "version": VERSION, "tensors": description, "checksum": checksum}


def count_sparse_bytes(sizes: Iterable[TensorSize]) -> int:
    """Return the exact number of bytes of the file that `save_sparse` writes without ``dtype``.

    Args:
        sizes: The tensors, in the order of the ``state_dict``.
    """
    described: dict[str, Any] = {}
    stored: list[tuple[int, bytes, str, torch.dtype, list[int]]] = []
    for size in sizes:
        described[size.name] = describe(size)
        for key, dtype, shape in _list_stored(size):
            stored.append((_ORDER[dtype], key.encode(), key, dtype, shape))
    metadata = make_metadata(json.dumps(described), _DIGEST)
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for _, _, key, dtype, shape in sorted(stored, key=lambda each: each[:2]):
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [begin, end]}
    return 8 + _align(_count_json_bytes(header)) + end


def identify(name: str, tensor: Tensor) -> Any:
    """Return a key that two tensors of a ``state_dict`` share if and only if they are tied."""
    if tensor.numel() == 0:
        return name
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a type in the metadata."""
    return str(dtype).removeprefix("torch.")


def _list_stored(size: TensorSize) -> list[tuple[str, torch.dtype, list[int]]]:
    """Return key, type and shape of all that the file holds for a tensor."""
    if size.same_as is not None:
        return []
    entries, encoding = math.prod(size.shape), choose_encoding(size)
    if encoding == "plain":
        return [(PLAIN + size.name, size.dtype, list(size.shape))]
    values = (VALUES + size.name, size.dtype, [size.nonzero])
    if encoding == "mask":
        return [(MASK + size.name, torch.uint8, [math.ceil(entries / 8)]), values]
    return [
        (COUNTS + size.name, torch.int16, [math.ceil(entries / BLOCK)]),
        (INDICES + size.name, torch.uint8, [size.nonzero]),
        values,
    ]


def _count_json_bytes(header: Mapping[str, Any]) -> int:
    return len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())


def _align(size: int) -> int:
    """Return a size rounded up to a multiple of 8, as safetensors fills the header with spaces."""
    return size + -size % 8
