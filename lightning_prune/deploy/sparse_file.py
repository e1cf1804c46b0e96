"""Files of the nonzero values and their places; they load back bit for bit."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file, need_libraries, replace_file
from lightning_prune.deploy.sparse_encoding import decode, encode
from lightning_prune.deploy.sparse_layout import (
    DTYPES,
    FORMAT,
    VERSION,
    TensorSize,
    describe,
    dtype_name,
    identify,
    make_metadata,
)

_READ_VERSIONS = ("1", VERSION)  # version 1 has no indices


@check_arguments
def save_sparse(
    weights: nn.Module | Mapping[str, Tensor], path: str | Path, *, dtype: torch.dtype | None = None
) -> None:
    r"""Write a module's parameters and buffers without their zeros.

    Of a tensor with :math:`N` entries of :math:`b` bytes, :math:`k` of them not zero, the file
    holds what takes the fewest bytes (each key adds about 110 bytes to the header):

    - the :math:`k` values, and a mask of one bit an entry: :math:`\lceil N / 8 \rceil + k b`;
    - the values, and their indices: :math:`2 \lceil N / 256 \rceil + k (b + 1)`;
    - the plain tensor: :math:`N b`.

    An entry that is not among the values is zero. So ``-0.0`` is a value like any other, and NaNs
    keep their payload. Tied tensors are written once.

    It is a safetensors file: other readers of this format can list it, and loading executes
    nothing. The tensor ``name`` is ``values/name`` with ``mask/name`` (eight entries a byte, the
    first in the highest bit); or with ``counts/name`` (int16, the number of values in each block of
    256 entries) and ``indices/name`` (uint8, the place of each value in its block); or
    ``plain/name``. The metadata hold ``format``, ``version``, ``tensors`` (JSON: by name, in order,
    ``dtype`` and ``shape``, or ``same_as`` for a tied tensor) and ``checksum``: SHA-256 of
    ``tensors`` followed by the bytes of all tensors in the order of their names.

    Args:
        weights: A module, or a ``state_dict``.
        path: The file. It is replaced at the end: if anything fails, an older file stays.
        dtype: Type to store wider floating-point values in, ``torch.float16`` or
            ``torch.bfloat16``. They load in their own type again, rounded by up to :math:`2^{-8}`
            of themselves in bfloat16 and :math:`2^{-11}` in float16. Below :math:`2^{-14}`, float16
            rounds by up to :math:`2^{-25}`, so that smaller values become zero. By default nothing
            is rounded.

    Raises:
        ValueError: If a ``state_dict`` holds anything but tensors, or a type that a file cannot
            hold, if a finite value would become infinite in ``dtype``, or if the file cannot be
            written.
        ModuleNotFoundError: If safetensors is not installed.

    Example:
        >>> import tempfile
        >>> layer = nn.Linear(1000, 100)
        >>> _ = layer.weight.data.masked_fill_(torch.rand(100, 1000) < 0.9, 0.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_sparse(layer, f"{folder}/layer.safetensors")
        ...     loaded = load_sparse(f"{folder}/layer.safetensors")
        >>> layer.load_state_dict(loaded)
        <All keys matched successfully>
    """
    safetensors = _safetensors()
    if dtype not in (None, torch.float16, torch.bfloat16):
        raise ValueError(f"need float16, bfloat16 or None, got dtype={dtype}")
    check_output_file(path, argument="path")
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    first_names: dict[Any, str] = {}
    described: dict[str, dict[str, Any]] = {}
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        _refuse_what_no_file_holds(name, tensor)
        first = first_names.setdefault(identify(name, tensor), name)
        same_as = None if first == name else first
        shape = tuple(tensor.shape)
        described[name] = describe(TensorSize(name, tensor.dtype, shape, 0, same_as))
        if same_as is None:
            stored.update(encode(name, _rounded(name, tensor.detach().cpu(), dtype)))
    description = json.dumps(described)
    metadata = make_metadata(description, _checksum(description, stored))
    with replace_file(path) as file:
        file.write_bytes(safetensors.torch.save(stored, metadata))


@check_arguments
def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a file of `save_sparse`, dense and on the CPU, for ``load_state_dict``.

    Loading executes nothing. The tensors take at most 1,024 times the bytes of the file: two bytes
    stand for a block of 256 values of at most 8 bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If another program or version wrote the file, or it is damaged.
        ModuleNotFoundError: If safetensors is not installed.
    """
    file = Path(path)
    try:
        metadata, stored = _read(file)
        described = _checked(metadata, stored)
        loaded: dict[str, Tensor] = {}
        for name, entry in described.items():
            if "same_as" in entry:
                loaded[name] = loaded[entry["same_as"]]
            else:
                loaded[name] = decode(name, entry, stored)
        if stored:
            raise ValueError(f"it holds more than its metadata names: {', '.join(stored)}")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = error if isinstance(error, ValueError) else "its metadata are not valid"
        raise ValueError(f"need a file of save_sparse, got path='{path}': {reason}") from error
    return loaded


def _read(file: Path) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a safetensors file."""
    safetensors = _safetensors()
    with file.open("rb") as start:
        header = start.read(9)
    if header[8:] != b"{":
        raise ValueError("it is not a safetensors file")
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}, {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise ValueError(f"it is cut off or damaged ({error})") from error


def _checked(metadata: Mapping[str, str], stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the description of each tensor; raise ValueError if the file is not intact."""
    if metadata.get("format") != FORMAT:
        raise ValueError("it is not from save_sparse")
    if metadata.get("version") not in _READ_VERSIONS:
        raise ValueError(
            f"it has version {metadata.get('version')}, and this release reads versions "
            f"{' and '.join(_READ_VERSIONS)}"
        )
    if metadata.get("checksum") != _checksum(metadata["tensors"], stored):
        raise ValueError("it is damaged: its checksum does not fit its content")
    described: dict[str, Any] = json.loads(metadata["tensors"])
    return described


def _checksum(description: str, stored: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(description.encode())
    for key in sorted(stored):
        digest.update(stored[key].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _rounded(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is None or not tensor.is_floating_point() or tensor.itemsize <= dtype.itemsize:
        return tensor
    rounded = tensor.to(dtype)
    overflows = tensor.isfinite() & rounded.isinf()
    if overflows.any():
        raise ValueError(
            f"need values that {dtype_name(dtype)} can hold, got '{name}' with "
            f"{tensor[overflows].abs().max().item():g}; save without dtype"
        )
    return rounded


def _refuse_what_no_file_holds(name: str, tensor: Any) -> None:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        raise ValueError(
            f"need tensors in a state_dict, plain and of one process, got '{name}' of type "
            f"{type(tensor).__name__}"
        )
    if dtype_name(tensor.dtype) not in DTYPES:
        raise ValueError(
            f"need tensors of a type among {', '.join(DTYPES)}, got '{name}' of type "
            f"{dtype_name(tensor.dtype)}"
        )


def _safetensors() -> ModuleType:
    need_libraries("safetensors")
    import safetensors.torch

    return safetensors
