"""Optimizers whose statistics are not plain floating-point tensors in the shape of the weights."""

import torch


def find_trained(optimizer):
    """Return the parameters that have a gradient."""
    return [p for p in optimizer.param_groups[0]["params"] if p.grad is not None]


class Codes(torch.Tensor):
    """Eight-bit codes of numbers, as in torchao: 0 is not the code of zero."""

    step, zero = 2.0**-10, 128

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    @classmethod
    def of(cls, shape):
        return cls(torch.full(shape, cls.zero, dtype=torch.uint8))

    def read(self):
        return (self.codes.float() - self.zero) * self.step

    def write(self, values):
        self.codes = (values / self.step).round().add(self.zero).clamp(0, 255).to(torch.uint8)

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        if func is torch.ops.aten.copy_.default:
            target, source = args[:2]
            if isinstance(target, Codes):
                target.write(source)
                return target
            return target.copy_(source.read())
        raise NotImplementedError(func)


class Sealed(Codes):
    """Can be read and written by its optimizer only."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args, kwargs=None):
        raise NotImplementedError(func)


class NoZero(Codes):
    """Has no code for zero, as the second moments of torchao in four bits."""

    def write(self, values):
        super().write(values)
        self.codes[self.codes == self.zero] += 1


class Momentum(torch.optim.Optimizer):
    """Momentum in codes."""

    def __init__(self, parameters, kind):
        super().__init__(parameters, {})
        self.kind = kind

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in find_trained(self):
            state = self.state[parameter]
            codes = state.setdefault("exp_avg", self.kind.of(parameter.shape))
            average = 0.9 * codes.read() + parameter.grad
            codes.write(average)
            parameter.sub_(average, alpha=0.1)


class PlainCodes(torch.optim.Optimizer):
    """The same in plain tensors, as in bitsandbytes."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in find_trained(self):
            state = self.state[parameter]
            codes = state.setdefault(
                "state1", torch.full(parameter.shape, Codes.zero, dtype=torch.uint8)
            )
            average = 0.9 * Codes(codes).read() + parameter.grad
            state["state1"] = (average / Codes.step).round().add(Codes.zero).to(torch.uint8)
            parameter.sub_(average, alpha=0.1)


class LowRank(torch.optim.Optimizer):
    """Momentum of a projection of the gradient, as in GaLore."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in find_trained(self):
            basis = torch.eye(len(parameter))[:2]
            projected = basis @ parameter.grad.flatten(1 if parameter.ndim > 1 else 0)
            momentum = self.state[parameter].setdefault("exp_avg", torch.zeros_like(projected))
            momentum.mul_(0.9).add_(projected)
            parameter.sub_((basis.T @ momentum).view_as(parameter), alpha=0.1)


class Eighth(torch.optim.Optimizer):
    """Momentum in eight-bit floats."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in find_trained(self):
            state = self.state[parameter]
            before = state.get("exp_avg", torch.zeros_like(parameter)).float()
            state["exp_avg"] = (0.9 * before + parameter.grad).to(torch.float8_e5m2)
            parameter.sub_(state["exp_avg"].float(), alpha=0.1)
