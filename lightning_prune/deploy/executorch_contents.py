"""The weights in an ExecuTorch file.

XNNPACK keeps the part of the program that it runs in a format of its own: a header and a graph,
which names the data of the weights by keys. They are read here as `schema.fbs` of
`executorch/backends/xnnpack/serialization` describes them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_FLOAT = 6  # float32, in ExecuTorch's schema as in torch
_GRAPH_OFFSET = slice(10, 14)  # in XNNPACK's header
_PLAIN = 1  # the kind of a value that is not quantized
# Places of fields in the tables of the schema: 4 bytes, and 2 for each field before.
_VALUES, _CONSTANTS = 8, 20  # of XNNGraph
_KIND, _VALUE = 4, 6  # of XValue
_SIZES, _CONSTANT = 8, 10  # of XNNTensorValue
_KEY = 8  # of ConstantDataOffset


def count_zeros(file: Path) -> tuple[int, int]:
    """Return how many entries of a file's weights are zero, and the number of entries.

    Weights are float32 constants with two or more dimensions. Equal weights of the same shape are
    in the file once, and count once.
    """
    from executorch.exir._serialize._program import deserialize_pte_binary

    content = deserialize_pte_binary(file.read_bytes())
    weights = list(_find_plain_weights(content.program))
    parts = content.program.backend_delegate_data
    found = {weight for part in parts for weight in _find_delegated_weights(bytes(part.data))}
    for key, _ in found:
        place = content.named_data.pte_data[key].buffer_index
        weights.append(bytes(content.named_data.buffers[place]))
    entries = [np.frombuffer(weight, "<f4") for weight in weights]
    return sum(int((each == 0).sum()) for each in entries), sum(each.size for each in entries)


def _find_plain_weights(program: Any) -> Iterator[bytes]:
    """Yield the weights that ExecuTorch's own kernels read."""
    sizes = {}
    for plan in program.execution_plan:
        for value in plan.values:
            place = getattr(value.val, "data_buffer_idx", 0)
            if place and value.val.scalar_type == _FLOAT and len(value.val.sizes) > 1:
                sizes[place] = 4 * int(np.prod(value.val.sizes))
    for place, size in sizes.items():
        yield bytes(program.constant_buffer[place].storage)[:size]


def _find_delegated_weights(data: bytes) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the keys and sizes of the weights in a part that XNNPACK runs."""
    from flatbuffers import number_types
    from flatbuffers.table import Table

    root = Table(data, int.from_bytes(data[_GRAPH_OFFSET], "little"))
    graph = Table(data, root.Indirect(root.Pos))
    constants = list(_follow(graph, _CONSTANTS))
    for union in _follow(graph, _VALUES):
        if union.GetSlot(_KIND, 0, number_types.Uint8Flags) == _PLAIN:
            value = Table(data, union.Indirect(union.Pos + union.Offset(_VALUE)))
            index = value.GetSlot(_CONSTANT, 0, number_types.Uint32Flags)
            places = value.Offset(_SIZES)
            if index and places and value.VectorLen(places) > 1:
                sizes = value.GetVectorAsNumpy(number_types.Uint32Flags, places)
                constant = constants[index]
                key = constant.String(constant.Pos + constant.Offset(_KEY)).decode()
                yield key, tuple(sizes.tolist())


def _follow(table: Any, place: int) -> Iterator[Any]:
    """Yield the tables that a field lists."""
    field = table.Offset(place)
    start = table.Vector(field)
    for index in range(table.VectorLen(field)):
        yield type(table)(table.Bytes, table.Indirect(start + 4 * index))
