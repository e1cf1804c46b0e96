"""Examples of a module's calls: recorded from a run, or of random numbers."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.models.calls import Call, bind_call
from lightning_prune.models.trees import map_tensors, replace_tensors


class CallRecorder:
    """Records the first calls of a module's ``forward``, and steps aside.

    It takes the place of ``forward``, so that it sees ``self.forward(x)`` as well as ``self(x)``. A
    copy of the module that is made meanwhile works by its own weights.

    Args:
        module: The module.
        limit: The number of calls to record.
        samples: The number of samples to keep of each call; by default all.

    Attributes:
        calls: The calls so far, as copies on the CPU.
    """

    def __init__(self, module: nn.Module, limit: int, samples: int | None = None) -> None:
        self.calls: list[Call] = []
        self._module, self._limit, self._samples = module, limit, samples
        self._before = vars(module).get("forward")
        self.__wrapped__ = module.forward  # whose signature `inspect` finds here
        self._record = torch.compiler.disable(self._record_call)  # type: ignore[no-untyped-call]
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Record the call and make it."""
        self._record(args, kwargs)
        return self.__wrapped__(*args, **kwargs)

    def __enter__(self) -> "CallRecorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Give the module its ``forward`` back."""
        top = vars(self._module).get("forward")
        if top is self:
            if self._before is None:
                del self._module.forward
            else:
                self._module.forward = self._before
        while isinstance(top, CallRecorder):
            if top._before is self:  # a recorder that came later
                top._before, top.__wrapped__ = self._before, self.__wrapped__
            top = top._before

    def _record_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(self.calls) < self._limit:
            call = bind_call(self._module, args, kwargs)
            call = call if self._samples is None else call.take_samples(self._samples)
            self.calls.append(map_tensors(lambda t: t.detach().to("cpu", copy=True), call))
        if len(self.calls) == self._limit:
            self.stop()


def make_random_calls(call: Call, batch_sizes: Iterable[int | None]) -> Iterator[Call]:
    """Yield calls like this one, with the same random numbers each time.

    Args:
        call: Random entries have the range of its tensors.
        batch_sizes: For each call the number of samples; None where a call has no samples.
    """
    generator = torch.Generator().manual_seed(0)
    for batch_size in batch_sizes:
        tensors = []
        for tensor in call.tensors:
            shape = list(tensor.shape)
            if batch_size is not None and call.has_samples(tensor):
                shape[0] = batch_size
            tensors.append(_draw_like(tensor, shape, generator))
        yield replace_tensors(call, tensors)


def _draw_like(tensor: Tensor, shape: list[int], generator: torch.Generator) -> Tensor:
    """Return random entries in the range of a tensor; normal entries if it has no range."""
    if tensor.numel() == 0:
        return tensor
    options: dict[str, Any] = {"generator": generator, "dtype": tensor.dtype}
    if tensor.dtype == torch.bool:
        drawn = torch.rand(shape, generator=generator, device="cpu") < 0.5
    elif not (tensor.is_floating_point() or tensor.is_complex()):
        drawn = torch.randint(
            int(tensor.min()), int(tensor.max()) + 1, shape, **options, device="cpu"
        )
    elif _has_range(tensor):
        low, high = tensor.min().cpu(), tensor.max().cpu()
        drawn = low + (high - low) * torch.rand(shape, **options, device="cpu")
    else:
        drawn = torch.randn(shape, **options, device="cpu")
    return drawn.to(tensor.device)


def _has_range(tensor: Tensor) -> bool:
    """Whether the entries are real, differ, and are finite."""
    if tensor.is_complex():
        return False
    distance = tensor.max() - tensor.min()
    return bool(distance > 0) and bool(distance.isfinite())
