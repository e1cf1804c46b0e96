"""ONNX files in ONNX Runtime, on a single thread of the CPU."""

from pathlib import Path

import onnxruntime
import torch
from torch import Tensor

from benchmarks.kit.turns import Call, PairedTimes, time_pairs


def open_file(path: Path) -> onnxruntime.InferenceSession:
    """Open a file; an operator uses a single thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors; the warnings are about optimizations
    return onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])


def make_call(path: Path, example: Tensor) -> Call:
    """Return a function that answers the example each time."""
    session = open_file(path)
    given = {session.get_inputs()[0].name: example.numpy()}
    return lambda: session.run(None, given)


def answer(path: Path, inputs: Tensor, batch: int = 1000) -> Tensor:
    """Return the first output of a file with a single input, batch by batch."""
    session = open_file(path)
    name = session.get_inputs()[0].name
    parts = [session.run(None, {name: part.numpy()})[0] for part in inputs.split(batch)]
    return torch.cat([torch.from_numpy(part) for part in parts])


def time_files(first: Path, second: Path, example: Tensor, blocks: int) -> PairedTimes:
    """Let two files answer the example in turns, and compare their times.

    Args:
        first: The slower file, as a rule.
        second: The other file.
        example: The input of both.
        blocks: Number of pairs of blocks of calls.
    """
    return time_pairs(make_call(first, example), make_call(second, example), blocks)
