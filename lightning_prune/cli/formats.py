"""The formats and precisions of files to deploy, as users name them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Format = Literal["onnx", "executorch", "sparse"]
Precision = Literal["fp32", "fp16", "int8"]

RECIPE = "shrunk_recipe"
"""The key of the recipe in a shrunk checkpoint, which has no state of callbacks."""

_SUFFIXES = {"onnx": ".onnx", "executorch": ".pte", "sparse": ".safetensors"}


def check_precision(format: Format, precision: Precision, reduce_range: bool | None) -> None:
    """Raise ValueError if format, precision and range do not go together."""
    if format == "sparse" and precision == "int8":
        raise ValueError("need fp32 or fp16 for a sparse file, got precision=int8")
    if format == "executorch" and precision != "fp32":
        raise ValueError(f"need fp32 for an ExecuTorch file, got precision={precision}")
    if precision != "int8" and reduce_range is not None:
        raise ValueError(f"need int8 for reduce_range={reduce_range}, got precision={precision}")


def read_dynamic(dynamic: str | None, format: Format) -> dict[str, list[int]]:
    """Return the dimensions of any size by the name of the input.

    Args:
        dynamic: Names and dimensions as the user writes them; None for none.
        format: The format of the file.

    Raises:
        ValueError: If the text has another form, or the file is not an ONNX file.

    Examples:
        >>> read_dynamic("ids:1,mask:1", "onnx")
        {'ids': [1], 'mask': [1]}
    """
    if dynamic is None:
        return {}
    if format != "onnx":
        raise ValueError(f"need format=onnx for dynamic={dynamic}, got format={format}")
    shapes: dict[str, list[int]] = {}
    for part in dynamic.split(","):
        name, _, dimension = part.strip().rpartition(":")
        if not (name and dimension.isdecimal()):
            raise ValueError(f"need names and dimensions, such as ids:1,mask:1, got {dynamic=}")
        shapes.setdefault(name, []).append(int(dimension))
    return shapes


def find_recipe(checkpoint: Mapping[str, Any]) -> str | None:
    """Return the recipe of a checkpoint as YAML; None if it was not pruned here."""
    states = checkpoint.get("callbacks", {})
    found = [checkpoint.get(RECIPE)]
    found += [state.get("recipe") for state in states.values() if isinstance(state, Mapping)]
    return next((recipe for recipe in found if isinstance(recipe, str)), None)


def read_facts(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    """Return the recipe of a checkpoint, for the metadata of a file.

    With a `BytesBudget` the recipe is left out: the budget does not count its bytes.
    """
    recipe = find_recipe(checkpoint)
    return {"recipe": recipe} if recipe and "BytesBudget" not in recipe else {}


def name_beside(ckpt_path: str, format: Format, precision: Precision) -> Path:
    """Return the name of the file to write beside a checkpoint."""
    source = Path(ckpt_path)
    rounded = "" if precision == "fp32" else f"-{precision}"
    return source.with_name(source.stem + rounded + _SUFFIXES[format])
