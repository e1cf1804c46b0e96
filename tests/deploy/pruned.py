"""A pruned module, as training leaves it."""

import torch


def pruned(module, sparsity=0.9):
    """Zero the smallest weights, and give statistics and the other parameters some values."""
    torch.manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data.uniform_(0.1, 1.0)
        if tensor.dim() > 1:
            tensor.data -= 0.5
            order = tensor.detach().abs().flatten().argsort()
            tensor.data.view(-1)[order[: round(sparsity * tensor.numel())]] = 0.0
    return module
