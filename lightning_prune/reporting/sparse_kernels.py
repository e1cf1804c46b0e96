"""2:4 kernels in the place of dense ones, where a measurement shows that they are faster."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_prune.arguments.checks import check_arguments
from lightning_prune.deploy.two_four import SparseKernel, explain_linear, find_sparse_kernels
from lightning_prune.models.calls import Call, make_call
from lightning_prune.models.comparison import largest_difference, relative_difference
from lightning_prune.models.errors import describe_error
from lightning_prune.models.names import named_modules
from lightning_prune.models.progress import show_progress, track_progress
from lightning_prune.models.trees import find_tensors
from lightning_prune.models.undisturbed import keep_generators, keep_modes
from lightning_prune.reporting.latency import (
    BLOCKS,
    LEAST_BLOCKS,
    Contest,
    Latency,
    measure_latency,
)
from lightning_prune.tables.table import Column, Table

_TOLERANCE = 0.01  # sums in another order, in half precision
_Measure = Callable[[Contest], Latency]


@dataclass(frozen=True, kw_only=True)
class SparseLayer:
    """A Linear that got a 2:4 kernel, or the reason why it stays dense.

    Args:
        name: Name of the layer.
        kernel: Name of the kernel; empty for a layer that stays dense.
        reason: Why it stays dense; empty for a layer that got a kernel.
        speedup: Median time of the dense layer over that of the fastest kernel; None if no kernel
            was measured.
        difference: Largest difference of the outputs of that kernel, as a fraction of the largest
            output; None if no kernel was measured.
    """

    name: str
    kernel: str = ""
    reason: str = ""
    speedup: float | None = None
    difference: float | None = None


@dataclass(frozen=True, kw_only=True)
class SparseKernels:
    """The layers of a model with 2:4 kernels, and those that stay dense.

    Args:
        layers: All layers that are a Linear, in the order of the model.
        speedup: Median time of the dense model over that of the model with kernels; None if no
            kernel was faster than the dense layer.
        difference: Largest difference of the outputs of the model, as a fraction of the largest
            output; 0 for a model that stays dense.
    """

    layers: tuple[SparseLayer, ...]
    speedup: float | None = None
    difference: float = 0.0

    def table(self) -> Table:
        """Return a row for each layer, for a terminal or a notebook."""
        rows = [
            [
                layer.name,
                layer.kernel or f"dense: {layer.reason}",
                "" if layer.speedup is None else f"{layer.speedup:.2f}",
                "" if layer.difference is None else f"{layer.difference:.2g}",
            ]
            for layer in self.layers
        ]
        times = "dense" if self.speedup is None else f"{self.speedup:.2f} times as fast as dense"
        return Table(
            title="2:4 kernels",
            columns=[
                Column(heading="layer", align="left"),
                Column(heading="kernel", align="left"),
                Column(heading="dense / sparse"),
                Column(heading="difference"),
            ],
            rows=rows,
            notes=[f"the whole model: {times}, outputs differ by {self.difference:.2g}"],
        )

    def _repr_html_(self) -> str:
        return self.table().to_html()


@check_arguments
def use_sparse_kernels(
    model: nn.Module,
    example: Any = None,
    *,
    compiled: bool = False,
    tolerance: float = _TOLERANCE,
    blocks: int = BLOCKS,
    progress: bool = True,
) -> SparseKernels:
    """Give each 2:4 Linear a kernel for sparse tensor cores, where the kernel is faster.

    Each Linear whose weight is 2:4, as `NMPattern` leaves it, takes turns with the kernels of torch
    (cuSPARSELt, with and without fused transposition, and CUTLASS) on the inputs that the example
    brings. The fastest stays if its outputs agree, and if it is certainly faster than the dense
    layer. In the end the whole model takes turns with the dense model. If the model is not
    certainly faster as a whole, all layers stay dense.

    The weights of these layers are then in the form of the kernel, for inference only. Save or
    export the model before. The kernels need CUDA, a card from Ampere on, and half precision.

    Args:
        model: The pruned model, on the card and in the precision of inference. It changes in place.
        example: The input of ``forward``, in the batch size of inference: a tensor, a tuple of
            positional or a dict of keyword arguments. By default the ``example_input_array``.
        compiled: Whether the model will run under `torch.compile`. Then layers and model are timed
            so; an eager call of a kernel costs the host much more.
        tolerance: Largest difference of outputs, as a fraction of the largest output.
        blocks: Number of pairs of blocks of calls, at least 6.
        progress: Whether to show a progress bar in a terminal.

    Returns:
        The kernel of each layer, or the reason why it stays dense.

    Raises:
        ValueError: If there is no example, or an argument is out of range.

    Examples:
        >>> used = use_sparse_kernels(nn.Linear(8, 8), torch.ones(1, 8))
        >>> used.layers[0].reason
        '16 of 16 groups of 4 inputs keep more than 2'
    """
    if not tolerance >= 0:
        raise ValueError(f"need tolerance >= 0, got tolerance={tolerance}")
    if blocks < LEAST_BLOCKS:
        raise ValueError(f"need blocks >= {LEAST_BLOCKS}, got blocks={blocks}")
    call = make_call(model, example)
    measure = show_progress(False)(partial(measure_latency, blocks=blocks))  # layers share a bar
    trial = KernelTrial(find_sparse_kernels(), measure, tolerance=tolerance, compiled=compiled)
    with torch.no_grad(), keep_generators(), keep_modes(model), show_progress(progress):
        return trial.convert(model.eval(), call)


class KernelTrial:
    """Lets kernels take turns with dense layers, and keeps those that win.

    Args:
        kernels: The kernels to try.
        measure: Measures a contest.
        tolerance: Largest difference of outputs, as a fraction of the largest output.
        compiled: Whether to time compiled calls.
    """

    def __init__(
        self,
        kernels: Sequence[SparseKernel],
        measure: _Measure,
        *,
        tolerance: float,
        compiled: bool,
    ) -> None:
        self._kernels, self._measure, self._tolerance = kernels, measure, tolerance
        self._compile: Callable[[Callable[..., object]], Callable[..., object]]
        self._compile = torch.compile if compiled else lambda function: function

    def convert(self, model: nn.Module, call: Call) -> SparseKernels:
        """Convert the layers of a model in evaluation mode that win.

        Args:
            model: The model; it changes in place.
            call: The arguments of ``forward``.
        """
        linears = {n: m for n, m in named_modules(model).items() if isinstance(m, nn.Linear)}
        owners = Counter(
            id(parameter) for part in model.modules() for parameter in part._parameters.values()
        )
        with _seeing_inputs(linears) as seen:
            expected = find_tensors(model(*call.arguments, **call.keywords))
        layers, weights = [], {}
        for name, layer in track_progress(list(linears.items()), "trying kernels"):
            reason = explain_linear(layer, owners)
            if reason is None and name not in seen:
                reason = "not called with this example"
            if reason is not None:
                layers.append(SparseLayer(name=name, reason=reason))
                continue
            found, weight = self._try_kernels(name, layer, seen.pop(name))
            layers.append(found)
            if found.kernel:
                weights[name] = nn.Parameter(weight, requires_grad=False)
        if not weights:
            return SparseKernels(layers=tuple(layers))
        swap = _Swap({linears[name]: weight for name, weight in weights.items()})
        return self._judge(model, call, swap, layers, expected)

    def _try_kernels(
        self, name: str, layer: nn.Linear, inputs: Tensor
    ) -> tuple[SparseLayer, Tensor]:
        """Return the verdict on the fastest kernel, and the weight in the form of that kernel."""
        dense, bias = layer.weight.detach(), layer.bias
        found = SparseLayer(name=name, reason="no kernel")
        best = dense
        for kernel in self._kernels:
            if reason := kernel.explain(dense):
                found = found if found.speedup else SparseLayer(name=name, reason=reason)
                continue
            try:
                weight = kernel.convert(dense)
                output = nn.functional.linear(inputs, weight, bias)
                latency = self._compete(layer, inputs, weight)
            except Exception as error:  # of a kernel that does not suit this card
                reason = describe_error(error)
                found = found if found.speedup else SparseLayer(name=name, reason=reason)
                continue
            difference = relative_difference(nn.functional.linear(inputs, dense, bias), output)
            judged = self._judge_layer(name, kernel.name, latency, difference)
            if _rank(judged) > _rank(found):
                found, best = judged, weight
        return found, best

    def _compete(self, layer: nn.Linear, inputs: Tensor, weight: Tensor) -> Latency:
        multiply = self._compile(nn.functional.linear)

        def run(weight: Tensor) -> None:
            multiply(inputs, weight, layer.bias)
            _wait(inputs.device)

        dense = partial(run, layer.weight.detach())
        return self._measure(_make_contest(inputs.device, dense, partial(run, weight)))

    def _judge_layer(
        self, name: str, kernel: str, latency: Latency, difference: float
    ) -> SparseLayer:
        reason = ""
        if not difference <= self._tolerance:
            reason = f"outputs of {kernel} differ by {difference:.2g}"
        elif latency.low <= 1:
            reason = f"{kernel} is no faster"
        return SparseLayer(
            name=name,
            kernel="" if reason else kernel,
            reason=reason,
            speedup=latency.speedup,
            difference=difference,
        )

    def _judge(
        self,
        model: nn.Module,
        call: Call,
        swap: "_Swap",
        layers: Sequence[SparseLayer],
        expected: Sequence[Tensor],
    ) -> SparseKernels:
        """Keep the kernels if the whole model wins with them, too."""
        run, device = self._compile(model), swap.device

        def call_with(*, is_sparse: bool) -> None:
            swap.show(is_sparse=is_sparse)
            run(*call.arguments, **call.keywords)
            _wait(device)

        swap.show(is_sparse=False)
        try:
            dense, sparse = (partial(call_with, is_sparse=each) for each in (False, True))
            latency = self._measure(_make_contest(device, dense, sparse))
            swap.show(is_sparse=True)
            found = find_tensors(model(*call.arguments, **call.keywords))
            difference = largest_difference(expected, found)
        except BaseException:
            swap.show(is_sparse=False)
            raise
        reason = ""
        if not difference <= self._tolerance:
            reason = f"with all kernels, outputs of the model differ by {difference:.2g}"
        elif latency.low <= 1:
            reason = f"with all kernels, the model is no faster: {latency.speedup:.2f}"
        if not reason:
            return SparseKernels(
                layers=tuple(layers), speedup=latency.speedup, difference=difference
            )
        swap.show(is_sparse=False)
        stay = [dataclasses.replace(e, kernel="", reason=reason) if e.kernel else e for e in layers]
        return SparseKernels(layers=tuple(stay), speedup=latency.speedup)


class _Swap:
    """Shows the dense or the sparse weights of layers."""

    def __init__(self, sparse: Mapping[nn.Linear, nn.Parameter]) -> None:
        self._sparse = sparse
        self._dense = {layer: layer.weight for layer in sparse}
        self.device = next(iter(self._dense.values())).device

    def show(self, *, is_sparse: bool) -> None:
        """Show the weights in one of both forms."""
        for layer, weight in (self._sparse if is_sparse else self._dense).items():
            layer.weight = weight


@contextmanager
def _seeing_inputs(layers: Mapping[str, nn.Linear]) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that gets the first input of each layer that is called inside the block."""
    seen: dict[str, Tensor] = {}

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and name not in seen:
            seen[name] = args[0].detach().clone()

    hooks = [layer.register_forward_pre_hook(partial(look, name)) for name, layer in layers.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _make_contest(
    device: torch.device, dense: Callable[[], object], sparse: Callable[[], object]
) -> Contest:
    threads, kind = torch.get_num_threads(), device.type
    return Contest(runtime="torch", device=kind, threads=threads, dense=dense, pruned=sparse)


def _rank(layer: SparseLayer) -> tuple[bool, float]:
    """Return a value by which kernels that may stay come first, and of these the fastest."""
    return bool(layer.kernel), layer.speedup or 0.0


def _wait(device: torch.device) -> None:
    """Wait until a device has computed all."""
    if device.type != "cpu":
        torch.accelerator.synchronize()
