"""The formats and precisions of files to deploy, as users name them."""

from pathlib import Path
from typing import Literal

Format = Literal["onnx", "executorch", "sparse"]
Precision = Literal["fp32", "fp16", "int8"]

_SUFFIXES = {"onnx": ".onnx", "executorch": ".pte", "sparse": ".safetensors"}


def check_precision(format: Format, precision: Precision, reduce_range: bool | None) -> None:
    """Raise ValueError if format, precision and range do not go together."""
    if format == "sparse" and precision == "int8":
        raise ValueError("need fp32 or fp16 for a sparse file, got precision=int8")
    if format == "executorch" and precision != "fp32":
        raise ValueError(f"need fp32 for an ExecuTorch file, got precision={precision}")
    if precision != "int8" and reduce_range is not None:
        raise ValueError(f"need int8 for reduce_range={reduce_range}, got precision={precision}")


def name_beside(ckpt_path: str, format: Format, precision: Precision) -> Path:
    """Return the name of the file to write beside a checkpoint."""
    source = Path(ckpt_path)
    rounded = "" if precision == "fp32" else f"-{precision}"
    return source.with_name(source.stem + rounded + _SUFFIXES[format])
