"""Small mixtures of experts, built as the best-known libraries build them."""

import torch
from torch import nn


class Experts(nn.Module):
    """Fused experts of Transformers: ``gate_up_proj`` and ``down_proj`` hold all experts."""

    def __init__(self, experts=4, width=8, inner=12, *, transposed=None, seen=True):
        super().__init__()
        up, down = (experts, 2 * inner, width), (experts, width, inner)
        if transposed:
            up, down = (up[0], up[2], up[1]), (down[0], down[2], down[1])
        self.gate_up_proj = nn.Parameter(torch.randn(up))
        self.down_proj = nn.Parameter(torch.randn(down))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(experts, 2 * inner))
        self.transposed = transposed
        if seen:
            self.is_transposed = bool(transposed)

    def forward(self, x, of_expert):
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(self, name)[of_expert]
            x = torch.bmm(x[:, None], weight if self.transposed else weight.mT).squeeze(1)
            x = x.chunk(2, 1)[0] if name == "gate_up_proj" else x
        return x


class Router(nn.Module):
    """A router with a weight of its own, as in Transformers 5."""

    def __init__(self, experts=4, width=8):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(experts, width))

    def forward(self, x):
        return nn.functional.linear(x, self.weight)


class Mixture(nn.Module):
    """Router and experts side by side, with a shared expert beside them."""

    def __init__(self, make_experts=Experts):
        super().__init__()
        self.gate = Router()
        self.experts = make_experts()
        self.shared_expert = nn.ModuleDict({"gate_proj": nn.Linear(8, 8, bias=False)})
        self.shared_expert_gate = nn.Linear(8, 1, bias=False)

    def forward(self, x):
        scores = self.gate(x).softmax(1)
        best, of_expert = scores.max(1)
        shared = self.shared_expert["gate_proj"](x) * self.shared_expert_gate(x).sigmoid()
        return self.experts(x, of_expert) * best[:, None] + shared


class Parallel(nn.Module):
    """Experts of a single layer, as in JetMoE: the sizes are attributes."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 12, 8))
        self.num_experts, self.input_size, self.output_size = 4, 8, 12


class Feedforward(nn.Module):
    """A mixture whose names say nothing but the number of experts; biases are no matrices."""

    def __init__(self):
        super().__init__()
        self.n_experts = 4
        self.wg = nn.Linear(8, 4, bias=False)
        self.w1, self.w2 = (nn.Parameter(torch.randn(4, 8, 8)) for _ in range(2))
        self.b1 = nn.Parameter(torch.randn(4, 1, 8))


class Listed(nn.Module):
    """Experts as a list of layers, beside a gate."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 2)
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Conv1d(8, 8, 3)])


class Gated(nn.Module):
    """No experts: a gate is a matrix like any other."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(8, 8)
        self.router = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(4, 8, 8))
