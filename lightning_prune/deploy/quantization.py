"""ONNX files in 8 bits, with their zeros counted."""

from collections.abc import Iterable
from itertools import chain
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.files import check_output_file, need_libraries, replace_file
from lightning_prune.deploy.onnx import LIBRARIES, OnnxFile, count_zeros, quiet_export
from lightning_prune.deploy.onnx_runtime import open_session, run_session
from lightning_prune.models.comparison import largest_difference
from lightning_prune.models.progress import note_progress, show_progress, track_progress
from lightning_prune.models.torch_floors import TorchFloor
from lightning_prune.models.trees import find_tensors, move_to_cpu


@check_arguments
def quantize_onnx(
    path: str | Path,
    output: str | Path,
    batches: Iterable[Any],
    *,
    reduce_range: bool | None = None,
    progress: bool = True,
) -> OnnxFile:
    """Write an ONNX file with weights and activations in 8 bits (static quantization, QDQ format).

    Weights are int8, symmetric and scaled for each output channel. Activations are uint8, over the
    range that calibration finds; embeddings are quantized like activations. A zero stays exactly
    zero in both: the function counts the zeros.

    Args:
        path: A file that `export_onnx` has written in ``"fp32"``.
        output: The file to write. It is replaced at the end: if anything fails, an older file
            stays.
        batches: Batches to calibrate with: examples of inputs, each as in `export_onnx`, in the
            order of ``forward``'s arguments.
        reduce_range: Whether weights use 7 of the 8 bits. x86 processors without VNNI instructions
            add products of 8 bits up in 16 bits, which saturates; products of 7 bits do not. By
            default, 7 bits if this machine has such a processor: say it if the file is for another.
        progress: Whether to show a progress bar in a terminal.

    Returns:
        The content of the file; its difference is that from the file of floats on ``batches``.

    Raises:
        ValueError: If there are no batches, zeros are lost, the output is the file that is read or
            cannot be written, or torch is too old for the default of ``reduce_range``.
        ModuleNotFoundError: If a library is missing.
    """
    need_libraries(*LIBRARIES)
    check_output_file(output, path=path)
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ValueError("need at least one batch to calibrate with, got batches=[]")
    floats = open_session(path)
    names = [node.name for node in floats.get_inputs()]
    shown = _Batches(names, chain([first], remaining), length_hint(batches) or None)
    with replace_file(output) as file, quiet_export(), show_progress(progress):
        _quantize(Path(path), file, shown, saturates() if reduce_range is None else reduce_range)
        integers = open_session(file)
        difference = max(
            largest_difference(run_session(floats, batch), run_session(integers, batch))
            for batch in track_progress(shown.seen, "comparing 8 bits with floats")
        )
        (zeros, entries), (needed, _) = count_zeros(file), count_zeros(Path(path))
        if zeros < needed:
            raise ValueError(f"need the {needed:,} zeros of '{path}', got zeros={zeros:,} in int8")
        size = file.stat().st_size
    return OnnxFile(
        path=Path(output),
        size=size,
        zeros=zeros,
        entries=entries,
        difference=difference,
        any_batch=isinstance(floats.get_inputs()[0].shape[0], str),
    )


def saturates() -> bool:
    """Whether this machine's products of 8 bits saturate: x86 without VNNI or AMX instructions."""
    TorchFloor.PROCESSOR.check("or give reduce_range, True for x86 without VNNI and AMX")
    able = torch.cpu.get_capabilities()
    without = not (able.get("avx512_vnni") or able.get("avx_vnni") or able.get("amx_int8"))
    return str(able["architecture"]).startswith("x86") and without


class _Batches:
    """Hands batches to ONNX Runtime one by one, and keeps them."""

    def __init__(self, names: list[str], batches: Iterable[Any], total: int | None) -> None:
        self.names, self.total = names, total
        self.batches = iter(batches)
        self.seen: list[list[Tensor]] = []

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by the names of the file's inputs; None after the last."""
        for batch in self.batches:
            note_progress("calibrating 8 bits", len(self.seen), self.total)
            self.seen.append(find_tensors(move_to_cpu(batch)))
            arrays = [tensor.numpy() for tensor in self.seen[-1]]
            return dict(zip(self.names, arrays, strict=True))
        return None


def _quantize(source: Path, output: Path, batches: _Batches, reduce_range: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    model = onnx.load(source)
    # The exporter has inferred shapes and merged normalizations; without this mark, the quantizer
    # asks for both.
    facts = {each.key: each.value for each in model.metadata_props}
    facts["onnx.quant.pre_process"] = "onnxruntime.quant"
    onnx.helper.set_model_props(model, facts)
    prepared = output.with_suffix(".prepared")
    onnx.save(model, prepared)
    quantize_static(
        prepared,
        output,
        batches,
        per_channel=True,
        reduce_range=reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
