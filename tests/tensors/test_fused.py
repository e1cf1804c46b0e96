"""Kernels under Triton's interpreter find what the ways without kernels find."""

import importlib.util
import math
import sys

import pytest
import torch

from lightning_prune.tensors import blocks, ranking
from lightning_prune.tensors.batches import mark_best
from lightning_prune.tensors.parts import SIZES, Part, Piece, take_magnitudes
from lightning_prune.tensors.readers import make_reader
from tests.accelerators import as_on_an_accelerator
from tests.tensors.test_ranking import DTYPES, twin

KERNELS = ("fused_counts", "fused_ranking")
LENGTHS = (1, 5, 700, 9_000, 3)  # one is longer than the span of a program
KINDS = ("normal", "few values", "zeros", "not finite", "denormal")


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Let the kernels run on the CPU: Triton reads where it is imported that this is wanted."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for name in list(sys.modules):
            is_triton = name.startswith("triton") and not name.startswith("triton._C")
            if is_triton or name.rpartition(".")[2] in KERNELS:
                patch.delitem(sys.modules, name)
        patch.setattr(blocks, "FUSES_ON", ("cpu",))
        patch.setattr(blocks, "SPAN", 1 << 12)
        yield


@pytest.fixture(autouse=True)
def accelerator(interpreted):
    """Let the package treat the CPU as an accelerator."""
    with as_on_an_accelerator():
        yield


def draw(kind, dtype, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for length in lengths:
        values = torch.randn(length, generator=generator, dtype=torch.float64)
        if kind == "few values":
            values.mul_(2).round_()
        elif kind == "zeros":
            values = torch.where(values < 0, -0.0, 0.0).double()
        elif kind == "not finite":
            values[torch.rand(length, generator=generator) < 0.3] = math.inf
            values[torch.rand(length, generator=generator) < 0.3] = -math.inf
        elif kind == "denormal":
            values *= torch.finfo(dtype).smallest_normal
        tensors.append(values.to(dtype))
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_mark_the_top_of_a_stable_sort(kind, dtype):
    tensors = draw(kind, dtype)
    parts = [Part.of(scores) for scores in tensors]
    assert type(make_reader(parts, SIZES)).__name__ == "PieceTable"
    for share in (0.0, 0.3, 1.0):
        keeps = [round(share * len(scores)) for scores in tensors]
        masks = mark_best(parts, keeps)
        for scores, keep, mask in zip(tensors, keeps, masks, strict=True):
            assert torch.equal(mask, twin(scores, keep))
