"""Turns of layers, and the inputs that the layers of a turn see."""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_prune.callbacks.namespace import LightningModule, Trainer, import_beside
from lightning_prune.engine.repairing import LayerRepair
from lightning_prune.models.undisturbed import keep_generators, use_plain_kernels
from lightning_prune.tensors.moments import Moments


class Calls:
    """The calls of layers during a batch, in order."""

    def __init__(self) -> None:
        self.layers: list[int] = []
        self.is_shared: list[bool] = []  # whether the call before had the same tensor as input
        self._last: Tensor | None = None

    def note(self, layer: int, inputs: Tensor) -> None:
        """Note the call of a layer, by index."""
        self.layers.append(layer)
        self.is_shared.append(inputs is self._last)
        self._last = inputs

    def end(self) -> None:
        """Let the last input go."""
        self._last = None

    def count(self, layers: Sequence[int]) -> int:
        """Return the number of calls of layers."""
        return sum(layer in layers for layer in self.layers)


def find_turns(batches: Sequence[Calls]) -> list[list[int]]:
    """Return the layers in the order of their first calls; layers with the same input go together.

    Args:
        batches: The calls of each batch.
    """
    turns: list[list[int]] = []
    for layer, before in _find_first_calls(batches).items():
        if before is not None and turns and before in turns[-1]:
            turns[-1].append(layer)
        else:
            turns.append([layer])
    return turns


def _find_first_calls(batches: Sequence[Calls]) -> dict[int, int | None]:
    """Return the layers in order, with the layer before if each call has the same input there."""
    counts = Counter(layer for calls in batches for layer in calls.layers)
    before: dict[int, int | None] = {}
    for calls in batches:
        last: int | None = None
        for layer, is_shared in zip(calls.layers, calls.is_shared, strict=True):
            same = last if is_shared and last is not None else None
            if (
                before.setdefault(layer, same) != same
                or counts[layer] != counts[layer if same is None else same]
            ):
                before[layer] = None
            last = layer
    return before


def watch(layer: nn.Module, see: Callable[[Tensor], None]) -> RemovableHandle:
    """Return the hook that shows the input of each call of a layer to a function."""

    def show(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        see(next(iter((*args, *kwargs.values()))))

    return layer.register_forward_pre_hook(show, with_kwargs=True)


class EnoughError(BaseException):
    """Ends a forward pass that has shown all inputs that are needed; no model may catch it."""


class Gathering:
    """Sums over the inputs of the layers of a turn.

    Args:
        layers: Layers with the same input. Those without a kernel share the sums.
    """

    def __init__(self, layers: Sequence[LayerRepair]) -> None:
        self._layers = layers
        self._dense: list[deque[Tensor]] = [deque() for _ in layers]
        self._left = 0
        plain = [index for index, layer in enumerate(layers) if not layer.has_kernel]
        self._shared = set(plain[1:])
        self.moments: list[Moments] = []
        for index, layer in enumerate(layers):
            is_shared = index in self._shared
            self.moments.append(self.moments[plain[0]] if is_shared else layer.make_moments())

    @contextmanager
    def reading_dense(self, calls: int) -> Iterator[None]:
        """Keep the inputs that the dense model makes inside the block, up to a number of calls."""
        for dense in self._dense:
            dense.clear()
        with self._watching(calls, self._keep):
            yield

    @contextmanager
    def adding(self, calls: int) -> Iterator[None]:
        """Add the inputs of the block to the sums, up to a number of calls."""
        with self._watching(calls, self._add):
            yield

    def _keep(self, index: int, inputs: Tensor) -> None:
        if index not in self._shared:
            self._dense[index].append(inputs.clone())

    def _add(self, index: int, inputs: Tensor) -> None:
        if index in self._shared:
            return
        dense = self._dense[index].popleft() if self._dense[index] else inputs
        if dense.shape != inputs.shape:  # a router has sent other samples here
            dense = inputs
        self._layers[index].add(self.moments[index], inputs, dense)

    @contextmanager
    def _watching(self, calls: int, see: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Show each input to a function, and end the pass after a number of calls."""
        self._left = calls

        def show(index: int, inputs: Tensor) -> None:
            see(index, inputs.detach())
            self._left -= 1
            if self._left == 0:
                raise EnoughError

        hooks = [
            watch(layer.tensor.owner, partial(show, index))
            for index, layer in enumerate(self._layers)
        ]
        try:
            yield
        except EnoughError:
            pass
        finally:
            for hook in hooks:
                hook.remove()


def run_batch(trainer: Trainer, model: LightningModule, batch: Any, number: int) -> None:
    """Run the training step of a batch; each call sees the same random numbers.

    Args:
        trainer: Gives the precision.
        model: The model; what it logs is dropped.
        batch: The batch, where the model is.
        number: The index of the batch.
    """
    signatures = import_beside(trainer, "utilities.signature_utils")
    has_index = signatures.is_param_in_hook_signature(model.training_step, "batch_idx", min_args=2)
    arguments = (batch, number) if has_index else (batch,)
    # Under manual optimization the step itself calls backward.
    grads = torch.set_grad_enabled(not model.automatic_optimization)
    with grads, keep_generators(), use_plain_kernels(), _dropping_logs(model):
        trainer.strategy.training_step(*arguments)


@contextmanager
def _dropping_logs(model: LightningModule) -> Iterator[None]:
    """Log nothing inside the block: these steps are no steps of a training."""
    for name in ("log", "log_dict"):
        model.__dict__[name] = lambda *args, **options: None
    try:
        yield
    finally:
        for name in ("log", "log_dict"):
            del model.__dict__[name]
