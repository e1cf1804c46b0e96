"""One launch for all tensors writes the same zeros as a mask after the other."""

import copy
import importlib
import math

import pytest
import torch

from lightning_prune.tensors import fusing
from lightning_prune.tensors.mask_sets import MaskSet, lies_alike, make_launch
from lightning_prune.tensors.masks import Mask
from tests.accelerators import as_on_an_accelerator
from tests.interpreting import interpreted_kernels

SHAPES = [(3,), (70, 70), (64, 64), (4, 3, 2, 2), (0, 5), (1,)]


def draw(dtype):
    """Return values of several shapes and layouts, not finite here and there, and masks."""
    values = [torch.randn(shape).to(dtype) for shape in SHAPES]
    values.append(torch.randn(4, 3, 2, 2).to(dtype, memory_format=torch.channels_last))
    values.append(torch.randn(6, 8).to(dtype).T)
    for each in values:
        each[torch.rand(each.shape) < 0.2] = math.nan
        each[torch.rand(each.shape) < 0.2] = -math.inf
    with as_on_an_accelerator():
        return values, [Mask(torch.rand(each.shape) < 0.5, each) for each in values]


def assert_same(values, expected):
    for each, other in zip(values, expected, strict=True):
        assert torch.equal(each.isnan(), other.isnan())
        assert torch.equal(each.nan_to_num(), other.nan_to_num())
        assert torch.equal(each.signbit(), other.signbit())


def test_tensors_on_a_cpu_are_masked_in_turn():
    values, masks = draw(torch.float32)
    expected = [torch.where(mask.kept, each, 0.0) for mask, each in zip(masks, values, strict=True)]
    MaskSet().apply(masks, values)
    assert_same(values, expected)


@pytest.fixture
def interpreter():
    """Let Triton interpret the kernel, on a CPU."""
    with interpreted_kernels():
        yield


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_launch_writes_what_the_masks_write_in_turn(dtype):
    values, masks = draw(dtype)
    expected = [each.clone() for each in values]
    MaskSet().apply(masks, expected)
    assert all(lies_alike(mask, each) for mask, each in zip(masks, values, strict=True))
    launch = make_launch(masks, dtype.itemsize)
    launch.run(values)
    assert_same(values, expected)
    for mask in masks:  # the launch reads the masks anew, and finds tensors that have moved
        mask.intersect(torch.rand(mask.shape) < 0.5)
    moved = [each.clone() for each in values]
    shifted = [torch.empty(each.numel() + 1, dtype=dtype)[1:] for each in values]
    shifted = [s.as_strided(v.shape, v.stride(), 1) for s, v in zip(shifted, values, strict=True)]
    for each, other in zip(shifted, values, strict=True):
        each.copy_(other)  # at addresses that are no multiple of 16
    launch.run(moved)
    launch.run(shifted)
    MaskSet().apply(masks, values)
    assert_same(moved, values)
    assert_same(shifted, values)


class Kernel:
    """A kernel that notes its launches, and returns a compiled kernel, as Triton does on a GPU."""

    def __init__(self, kernel, launches, name="jit"):
        self.kernel, self.launches, self.name = kernel, launches, name

    def __getitem__(self, grid):
        def launch(*arguments):
            self.launches.append(self.name)
            self.kernel[grid](*arguments)
            return Kernel(self.kernel, self.launches, "compiled") if self.name == "jit" else None

        return launch


@pytest.mark.usefixtures("interpreter")
def test_the_compiled_kernel_is_launched_until_values_lie_at_other_multiples(monkeypatch):
    fused_zeroing = importlib.import_module("lightning_prune.tensors.fused_zeroing")
    launches, shape = [], (70, 70)
    monkeypatch.setattr(fused_zeroing, "_zero_pruned", Kernel(fused_zeroing._zero_pruned, launches))
    with as_on_an_accelerator():
        mask = Mask(torch.rand(shape) < 0.5, torch.zeros(shape))
    launch = make_launch([mask], 4)
    pool = torch.empty(2 * 4900 + 1)
    for start in (0, 0, 4900, 1):
        values = pool[start:][:4900].view(shape).normal_()
        expected = torch.where(mask.kept, values, 0.0)
        launch.run([values])
        assert torch.equal(values, expected)
    assert launches == ["jit", "compiled", "compiled", "jit"]


@pytest.mark.usefixtures("interpreter")
def test_a_set_finds_launches_for_other_masks_other_layouts_and_a_copy(monkeypatch):
    monkeypatch.setattr(fusing, "FUSES_ON", ("cpu",))
    values, masks = draw(torch.float32)
    together = MaskSet()

    def check(by, masks, values):
        expected = [each.clone() for each in values]
        for mask, each in zip(masks, expected, strict=True):
            mask.apply(each)
        by.apply(masks, values)
        assert_same(values, expected)

    check(together, masks, values)
    others = draw(torch.float32)[1]
    check(together, others, draw(torch.float32)[0])
    check(together, others, [each.double() for each in draw(torch.float32)[0]])
    check(together, others, [each.contiguous() for each in draw(torch.float32)[0]])
    check(together, others, values)
    copied, of_copy = copy.deepcopy((together, others))
    for mask in of_copy:
        mask.intersect(torch.rand(mask.shape) < 0.5)
    check(copied, of_copy, draw(torch.float32)[0])


def test_values_with_gaps_or_in_another_order_get_no_launch():
    with as_on_an_accelerator():
        mask = Mask(torch.rand(4, 6) < 0.5, torch.zeros(4, 6))
        wide = Mask(torch.rand(4, 6) < 0.5, torch.zeros(4, 12)[:, ::2])
    assert lies_alike(mask, torch.zeros(4, 6))
    assert not lies_alike(mask, torch.zeros(6, 4).T)
    assert not lies_alike(wide, torch.zeros(4, 12)[:, ::2])
    assert not lies_alike(Mask(torch.rand(4, 6) < 0.5, torch.zeros(4, 6)), torch.zeros(4, 6))
