"""Kernels under Triton's interpreter find what the ways without kernels find."""

import dataclasses
import importlib
import math
from contextlib import ExitStack
from unittest.mock import patch

import pytest
import torch
from torch import nn

from lightning_prune import (
    GlobalAllocation,
    LAMPAllocation,
    NMPattern,
    PolynomialSchedule,
    Pruner,
    TaylorCriterion,
    UniformAllocation,
    UnstructuredPattern,
)
from lightning_prune.tensors import (
    blocks,
    fusing,
    masks as masks_module,
    parts as parts_module,
    ranking,
)
from lightning_prune.tensors.batches import mark_best
from lightning_prune.tensors.counting import (
    Masked,
    count_kept,
    count_not_finite,
    count_revived,
)
from lightning_prune.tensors.lamp import LampPart, find_lamp_thresholds
from lightning_prune.tensors.masks import Mask
from lightning_prune.tensors.parts import SIZES, Part, Piece, take_magnitudes
from lightning_prune.tensors.readers import make_reader, make_row_table
from tests.accelerators import as_on_an_accelerator
from tests.interpreting import interpreted_kernels
from tests.tensors.scores import KINDS, draw
from tests.tensors.test_ranking import DTYPES, twin

LENGTHS = (1, 5, 700, 9_000, 3)  # one is longer than the span of a program


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """Let the kernels run on the CPU, with short spans."""
    with interpreted_kernels(), pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(fusing, "FUSES_ON", ("cpu",))
        monkeypatch.setattr(blocks, "SPAN", 1 << 12)
        yield


@pytest.fixture(autouse=True)
def accelerator(interpreted):
    """Let the package treat the CPU as an accelerator."""
    with as_on_an_accelerator():
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_mark_the_top_of_a_stable_sort(kind, dtype):
    tensors = draw(kind, dtype, LENGTHS)
    parts = [Part.of(scores) for scores in tensors]
    assert type(make_reader(parts, SIZES)).__name__ == "PieceTable"
    for share in (0.0, 0.3, 1.0):
        keeps = [round(share * len(scores)) for scores in tensors]
        masks = mark_best(parts, keeps)
        for scores, keep, mask in zip(tensors, keeps, masks, strict=True):
            assert torch.equal(mask, twin(scores, keep))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pool_is_divided_as_by_chunks_and_magnitudes_are_taken_in_the_kernel(dtype):
    tensors = [values.view(-1, 1) for values in draw("few values", dtype, LENGTHS)]
    pruned = [torch.rand(values.shape) < 0.3 for values in tensors]

    def make_parts(transform):
        def read_raw(index):
            return lambda: [
                Piece(tensors[index][rows], transform, pruned[index][rows])
                for rows in (slice(0, 3), slice(3, None))
            ]

        return [
            dataclasses.replace(Part.of(values), read_raw=read_raw(index))
            for index, values in enumerate(tensors)
        ]

    total = sum(LENGTHS) // 4
    found = []
    for transform, name in ((take_magnitudes, "PieceTable"), (torch.abs, "ChunkReader")):
        parts = make_parts(transform)
        assert type(make_reader(parts, SIZES)).__name__ == name
        shares = ranking.share_out(parts, total)
        keeps = [share.keep for share in shares]
        assert sum(keeps) == total
        found.append(mark_best(parts, keeps, [share.threshold for share in shares]))
    for mask, other in zip(*found, strict=True):
        assert torch.equal(mask, other)


def test_parts_that_a_kernel_cannot_read_are_read_in_chunks_beside_the_others():
    tensors = draw("normal", torch.float32, LENGTHS)
    tensors[1:3] = [torch.randn(6, 4).T, torch.randn(7, dtype=torch.bfloat16)]
    parts = [Part.of(scores) for scores in tensors]
    assert type(make_reader(parts, SIZES)).__name__ == "_MixedReader"
    keeps = [scores.numel() // 3 for scores in tensors]
    for scores, keep, mask in zip(tensors, keeps, mark_best(parts, keeps), strict=True):
        assert torch.equal(mask, twin(scores.flatten(), keep))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_count_what_the_masks_count(kind, dtype):
    tensors = draw(kind, dtype, LENGTHS)
    tensors[1] = torch.randn(4, 3, 2, 2).to(dtype, memory_format=torch.channels_last)
    tensors[2] = torch.randn(6, 4).to(dtype).T  # laid out like its mask, but not the choice below
    masks = [Mask(torch.rand(values.shape) < 0.5, values) for values in tensors]
    chosen = [torch.rand(values.shape) < 0.5 for values in tensors]
    for count, pairs, expected in (
        (count_revived, tensors, [m.count_revived(v) for m, v in zip(masks, tensors, strict=True)]),
        (count_kept, chosen, [m.count_with(c) for m, c in zip(masks, chosen, strict=True)]),
    ):
        found = count([Masked(*pair) for pair in zip(masks, pairs, strict=True)])
        assert torch.stack(found).tolist() == torch.stack(expected).tolist()
    tensors[0][0] = math.nan
    bad = sum(int((~values.isfinite()).sum()) for values in tensors)
    assert bad
    assert int(count_not_finite([[Piece(values)] for values in tensors])) == bad


@pytest.mark.parametrize(
    "recipe",
    [
        {"allocation": UniformAllocation()},
        {"allocation": GlobalAllocation()},
        {"criterion": TaylorCriterion()},
        {"pattern": NMPattern(n=2, m=4), "sparsity": 0.5},
        {"pattern": UnstructuredPattern(per_row=True)},
        {"allocation": LAMPAllocation()},
    ],
    ids=["uniform", "global", "held scores", "N:M", "rows", "LAMP"],
)
def test_updates_by_kernels_leave_what_updates_on_a_cpu_leave(recipe):
    found = []
    for device in ("as a CPU", "by kernels"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 8)).bfloat16()
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
        schedule = PolynomialSchedule(begin=0, end=4, every=2, unit="step")
        pruner = Pruner(**{"sparsity": 0.75, "schedule": schedule, **recipe})
        usual = patch.multiple(parts_module, READS_AT_ONCE=("cpu",))
        bits = patch.multiple(masks_module, BITS_ON=("cpu",))
        with ExitStack() as stack:
            if device == "as a CPU":
                stack.enter_context(usual)
                stack.enter_context(bits)
            pruner.attach(net, optimizer, steps=6)
            for _ in range(6):
                optimizer.zero_grad()
                net(torch.ones(3, 12).bfloat16()).square().mean().backward()
                pruner.before_step(optimizer)
                optimizer.step()
        assert pruner.updates == 3
        found.append([parameter.detach() for parameter in net.parameters()])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["normal", "few values", "zeros", "denormal"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_squares_are_summed_up_by_a_kernel_as_without(kind, dtype):
    parts = [Part.of(values.abs()) for values in draw(kind, dtype, LENGTHS)]
    pool = [LampPart(part=part, held=0, allowed=part.size) for part in parts]

    def fits(counts):
        return sum(counts) <= sum(LENGTHS) // 3

    found = find_lamp_thresholds(pool, fits)
    with patch.object(fusing, "FUSES_ON", ()):
        assert find_lamp_thresholds(pool, fits) == found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_and_groups_are_ranked_by_kernels_as_without(kind, dtype):
    scores = draw(kind, dtype, (12_600,))[0].view(12, 1050)
    keep = torch.tensor([0, 1, 350, 1049, 1050, 3] * 2)
    assert type(make_row_table(scores)).__name__ == "PieceTable"
    assert make_row_table(scores[:, :1023].contiguous()) is None
    with patch.dict(vars(SIZES), {"piece": 5 * 1050}):  # so that not all rows are read at once
        rows = ranking.choose_best_of_rows(scores, keep)
    assert rows.sum(1).tolist() == keep.tolist()
    few = scores.view(-1, 7)
    groups = ranking.choose_best_of_groups(few, 3)
    with patch.object(fusing, "FUSES_ON", ()):
        assert torch.equal(rows, ranking.choose_best_of_rows(scores, keep))
        assert torch.equal(groups, ranking.choose_best_of_groups(few, 3))


def test_where_triton_can_make_no_kernels_a_warning_says_so_and_masks_are_the_same(monkeypatch):
    def fail(*arguments):
        raise RuntimeError("Failed to find C compiler")

    scores = draw("normal", torch.float32, LENGTHS)
    parts = [Part.of(values) for values in scores]
    expected = mark_best(parts, [1] * len(parts))
    fused_counts = importlib.import_module("lightning_prune.tensors.fused_counts")
    monkeypatch.setattr(fused_counts, "count_zeros", fail)
    fusing._works.cache_clear()
    with pytest.warns(UserWarning, match=r"Triton cannot make kernels for cpu \(RuntimeError: Fai"):
        reader = make_reader(parts, SIZES)
    assert type(reader).__name__ == "ChunkReader"
    for mask, other in zip(mark_best(parts, [1] * len(parts)), expected, strict=True):
        assert torch.equal(mask, other)
    fusing._works.cache_clear()
