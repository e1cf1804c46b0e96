"""A forward pass under observation: multiplications, memory, and layers without an effect."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from lightning_prune.models.calls import Call
from lightning_prune.models.compiled import run_uncompiled
from lightning_prune.models.names import owner_of, plain_name
from lightning_prune.models.trees import find_tensors
from lightning_prune.models.undisturbed import use_plain_kernels

aten = torch.ops.aten

# Which arguments an operation multiplies with each other.
_FACTORS: dict[Any, tuple[int, ...]] = {
    aten.mm: (0, 1),
    aten.bmm: (0, 1),
    aten.mv: (0, 1),
    aten.dot: (0, 1),
    aten.addmm: (1, 2),
    aten.addmv: (1, 2),
    aten.baddbmm: (1, 2),
    aten.convolution: (0, 1),
    aten._convolution: (0, 1),
    aten.mkldnn_rnn_layer: (0, 1, 2),
    aten._scaled_dot_product_flash_attention_for_cpu: (0, 1, 2),
    aten._scaled_dot_product_flash_attention: (0, 1, 2),
    aten._scaled_dot_product_efficient_attention: (0, 1, 2),
    aten._scaled_dot_product_cudnn_attention: (0, 1, 2),
}
# Operations that look up or move matrices, and multiply nothing.
_MOVING = {
    aten.cat,
    aten.copy_,
    aten.embedding,
    aten._embedding_bag,
    aten._embedding_bag_forward_only,
    aten.gather,
    aten.index,
    aten.index_put,
    aten.index_put_,
    aten.index_select,
    aten.native_group_norm,
    aten.native_layer_norm,
    aten.select_scatter,
    aten.slice_scatter,
    aten.stack,
    aten._fused_rms_norm,
}


@dataclass(kw_only=True)
class Work:
    """The work of a layer in a forward pass.

    Attributes:
        macs: Multiplications with an addition each, also by zeros. Biases are left out, and so is
            all work entry by entry, such as activations and normalizations.
        effective: The multiplications by weights that are not zero.
        peak: The most bytes of activations that were alive after an operation of the layer.
        unknown: Names of operations with a weight whose multiplications cannot be counted.
        varies: Whether outputs of the layer change with the input of the model.
        would_vary: Whether they would change if no weight were zero.
    """

    macs: int = 0
    effective: int = 0
    peak: int = 0
    unknown: list[str] = field(default_factory=list)
    varies: bool = False
    would_vary: bool = False


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The work of a whole forward pass.

    Args:
        work: By the name of the module that holds the weights, or that works without weights.
        used: Names of the modules whose parameters took part.
        peak: The most bytes of activations that were alive at once, the input included.
        constant: Whether zeros keep all outputs from changing with the input.
    """

    work: Mapping[str, Work]
    used: Set[str]
    peak: int
    constant: bool


def count(module: nn.Module, call: Call) -> Pass:
    """Run a forward pass, operation by operation, and count.

    Each entry of a weight takes part equally often in an operation. (By custom, that includes the
    positions of a convolution's zero padding.) So the effective share of the multiplications is the
    share of entries that are not zero. FLOPs are those of `torch.utils.flop_counter`, halved.

    Args:
        module: Runs in its own mode and changes as by any forward pass: give a copy.
        call: The arguments of ``forward``.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # hides an RNN's matrices
        stack.enter_context(use_plain_kernels())
        stack.enter_context(run_uncompiled(module))
        counter = _Counter(module)
        counter.begin(call, stack)
        outputs = module(*call.arguments, **call.keywords)
    return counter.result(outputs)


@dataclass(kw_only=True)
class _Origin:
    """The origin of the bytes in a storage.

    Args:
        layer: Name of the layer whose parameters made the bytes; None if an input took part.
        varies: Whether they change with the input of the model.
        would_vary: Whether they would change if no weight were zero.
    """

    layer: str | None = None
    varies: bool = False
    would_vary: bool = False


_CONSTANT = _Origin()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor from parameters and input to the output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {layer: plain_name(name) for name, layer in module.named_modules()}
        self.work: dict[str, Work] = defaultdict(Work)
        self.origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.running: list[str] = []
        self.used: set[str] = set()
        self.alive = self.peak = 0
        for buffer in module.buffers():
            self.origins[buffer.untyped_storage()] = _Origin()
        for name, parameter in module.named_parameters():
            self.origins[parameter.untyped_storage()] = _Origin(layer=owner_of(plain_name(name)))

    def begin(self, inputs: Any, stack: ExitStack) -> None:
        """Observe until the stack is closed."""
        for tensor in find_tensors(inputs):
            self._origin(tensor, _Origin(varies=True, would_vary=True))
        for layer in self.names:
            stack.callback(layer.register_forward_pre_hook(self._enter).remove)
            stack.callback(layer.register_forward_hook(self._leave).remove)
        stack.enter_context(self)

    def result(self, outputs: Any) -> Pass:
        """Return the counts of the whole pass."""
        ends = [self._origin(tensor) for tensor in find_tensors(outputs)]
        constant = any(end.would_vary for end in ends) and not any(end.varies for end in ends)
        return Pass(work=self.work, used=self.used, peak=self.peak, constant=constant)

    def _enter(self, module: nn.Module, arguments: Any) -> None:
        self.running.append(self.names[module])

    def _leave(self, module: nn.Module, arguments: Any, outputs: Any) -> None:
        self.running.pop()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        packet = getattr(func, "overloadpacket", func)
        if packet not in _FACTORS and packet not in flop_registry:
            with self:
                decomposed = func.decompose(*args, **keywords)
            if decomposed is not NotImplemented:
                return decomposed
        origin = self._join_origins(find_tensors((args, keywords)))
        outputs = func(*args, **keywords)
        name = running = self.running[-1] if self.running else ""
        if origin.layer is not None:
            name = origin.layer
        if packet in _FACTORS or packet in flop_registry:
            self._multiply(packet, args, keywords, outputs, self.work[name], origin)
        elif origin.would_vary and _may_multiply(func, args, keywords, self):
            self.work[name].unknown.append(str(packet))
        else:
            name = running
        self._note_outputs(find_tensors(outputs), origin, self.work[name])
        return outputs

    def _join_origins(self, tensors: Sequence[Tensor]) -> _Origin:
        """Return the origin of a result that is computed from some tensors."""
        sources = [self._origin(tensor) for tensor in tensors]
        layers = [source.layer for source in sources if source.layer is not None]
        self.used.update(layers)
        return _Origin(
            layer=layers[0] if layers else None,
            varies=any(source.varies for source in sources),
            would_vary=any(source.would_vary for source in sources),
        )

    def _note_outputs(self, outputs: Sequence[Tensor], origin: _Origin, work: Work) -> None:
        """Remember the origin of an operation's outputs, and the state of memory after it."""
        if origin.would_vary:
            origin.layer = None
        for tensor in outputs:
            known = self._origin(tensor, origin)
            known.varies |= origin.varies
            known.would_vary |= origin.would_vary
        work.peak = max(work.peak, self.alive)
        work.varies |= origin.varies
        work.would_vary |= origin.would_vary

    def _multiply(
        self,
        packet: Any,
        args: Sequence[Any],
        keywords: Mapping[str, Any],
        outputs: Any,
        work: Work,
        origin: _Origin,
    ) -> None:
        """Add an operation's multiplications; if all are by zero, the result varies no more."""
        macs = _macs(packet, args, keywords, outputs)
        factors = [args[index] for index in _FACTORS.get(packet, ())]
        weights = [factor for factor in factors if self.made_of_weights(factor)]
        entries = sum(weight.numel() for weight in weights)
        kept = sum(int(weight.count_nonzero()) for weight in weights)
        work.macs += macs
        work.effective += macs * kept // entries if entries else macs
        if entries and not kept:
            added = [t for t in find_tensors((args, keywords)) if not any(t is f for f in factors)]
            origin.varies = any(self._origin(tensor).varies for tensor in added)

    def made_of_weights(self, tensor: Tensor) -> bool:
        """Whether a tensor was made of parameters, and no input took part."""
        origin = self._origin(tensor)
        return origin.layer is not None and not origin.would_vary

    def _origin(self, tensor: Tensor, unseen: _Origin = _CONSTANT) -> _Origin:
        """Return the origin of a tensor's storage; a storage that is new gets ``unseen``."""
        storage = tensor.untyped_storage()
        if storage not in self.origins:
            self.origins[storage] = _Origin(**vars(unseen))
            size = storage.nbytes()
            self.alive += size
            self.peak = max(self.peak, self.alive)
            weakref.finalize(storage, self._forget, size)
        found: _Origin = self.origins[storage]
        return found

    def _forget(self, size: int) -> None:
        self.alive -= size


def _macs(packet: Any, args: Sequence[Any], keywords: Mapping[str, Any], outputs: Any) -> int:
    if packet is aten.mkldnn_rnn_layer:
        steps = args[0].numel() // args[0].shape[-1]
        return int(steps * (args[1].numel() + args[2].numel()))
    if packet in (aten.mv, aten.addmv, aten.dot):
        return int(args[_FACTORS[packet][0]].numel())
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        packet = aten._scaled_dot_product_flash_attention
    formula: Callable[..., int] = flop_registry[packet]
    return formula(*args, **keywords, out_val=outputs) // 2


def _may_multiply(
    func: Any, args: Sequence[Any], keywords: Mapping[str, Any], counter: _Counter
) -> bool:
    """Whether an unknown operation may multiply an activation by a matrix of weights."""
    if func.overloadpacket in _MOVING or torch.Tag.pointwise in func.tags:
        return False
    return any(
        tensor.ndim > 1 and counter.made_of_weights(tensor)
        for tensor in find_tensors((args, keywords))
    )
