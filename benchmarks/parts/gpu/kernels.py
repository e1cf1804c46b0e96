"""2:4 kernels in a feed-forward network as large as that of Llama-7B."""

import torch
from torch import nn

from lightning_prune import NMPattern, OneShotSchedule, Pruner, SparseKernels, use_sparse_kernels

WIDTH, INNER, ROWS = 4096, 11008, 4096
BLOCKS = 9


def build_pruned(device: torch.device, scale: float) -> nn.Module:
    """Return linear layers in half precision, pruned to 2:4.

    Args:
        device: The device.
        scale: The widths as a multiple of those of Llama-7B.
    """
    width, inner = (round(scale * size / 64) * 64 for size in (WIDTH, INNER))
    with device:
        layers = [nn.Linear(*shape, bias=False) for shape in ((width, inner), (inner, width))]
    model = nn.Sequential(*layers).half()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = OneShotSchedule(end=0, unit="step")
    pruner = Pruner(sparsity=0.5, pattern=NMPattern(n=2, m=4), schedule=schedule)
    pruner.attach(model, optimizer, steps=1)
    pruner.before_step(optimizer)
    optimizer.step()
    pruner.detach()
    return model.eval()


def try_kernels(device: torch.device, scale: float, *, compiled: bool) -> SparseKernels:
    """Return what `use_sparse_kernels` has kept and measured."""
    model = build_pruned(device, scale)
    inputs = torch.randn(ROWS, model[0].in_features, device=device, dtype=torch.half)
    return use_sparse_kernels(model, inputs, compiled=compiled, blocks=BLOCKS, progress=False)
