"""One forward pass under observation: multiplications, memory, and what no longer matters."""

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from lightning_prune.models.names import owner_of, plain_name

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
# Operations that look matrices up or move them, and multiply by none.
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
    """What the layer of one name does in one forward pass.

    Attributes:
        macs: Multiplications with an addition each, zeros included; biases and all that works entry
            by entry, as activations and normalisations, left out.
        effective: Those of them that do not multiply a weight that is zero.
        peak: The most bytes of activations that were alive after one of its operations.
        unknown: Names of its operations with a weight whose multiplications nobody knows.
        varies: Whether its outputs change with the input of the model.
        would_vary: Whether they would if no weight were zero.
    """

    macs: int = 0
    effective: int = 0
    peak: int = 0
    unknown: list[str] = field(default_factory=list)
    varies: bool = False
    would_vary: bool = False


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What one forward pass does.

    Args:
        work: By the name of the module that holds the weights, or works without any.
        used: Names of the modules whose parameters took part.
        peak: The most bytes of activations that were alive at once, those of the input included.
        constant: Whether, for the zeros, no output changes with the input any more.
    """

    work: Mapping[str, Work]
    used: Set[str]
    peak: int
    constant: bool


def count(module: nn.Module, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Pass:
    """Run one forward pass, operation by operation, and count.

    Each entry of a weight takes part equally often in one operation (positions of a convolution's
    zero padding are counted as such, by custom), so the effective share of its multiplications is
    that of its entries that are not zero. FLOPs are those of `torch.utils.flop_counter`, halved.

    Args:
        module: Runs in its own mode and changes as by any forward pass: give a copy.
        arguments: Positional arguments of ``forward``.
        keywords: Keyword arguments of ``forward``.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # hides an RNN's matrices
        stack.enter_context(_slow_attention())
        if any(hasattr(layer, "_orig_mod") for layer in module.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        counter = _Counter(module)
        counter.begin((arguments, keywords), stack)
        outputs = module(*arguments, **keywords)
    return counter.result(outputs)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """Run transformer layers of torch by the operations that they are made of."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@dataclass(kw_only=True)
class _Origin:
    """What the bytes of a storage come from.

    Args:
        layer: Name of the layer whose parameters it was made of, if of nothing that varies.
        varies: Whether it changes with the input of the model.
        would_vary: Whether it would if no weight were zero.
    """

    layer: str | None = None
    varies: bool = False
    would_vary: bool = False


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
        for tensor in _tensors(inputs):
            self._origin(tensor, _Origin(varies=True, would_vary=True))
        for layer in self.names:
            stack.callback(layer.register_forward_pre_hook(self._enter).remove)
            stack.callback(layer.register_forward_hook(self._leave).remove)
        stack.enter_context(self)

    def result(self, outputs: Any) -> Pass:
        """Return what was counted."""
        ends = [self._origin(tensor, _Origin()) for tensor in _tensors(outputs)]
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
        sources = [self._origin(t, _Origin()) for t in _tensors((args, keywords))]
        outputs = func(*args, **keywords)
        layers = [source.layer for source in sources if source.layer is not None]
        self.used.update(layers)
        origin = _Origin(
            layer=layers[0] if layers else None,
            varies=any(source.varies for source in sources),
            would_vary=any(source.would_vary for source in sources),
        )
        running = self.running[-1] if self.running else ""
        name = running if origin.layer is None else origin.layer
        if packet in _FACTORS or packet in flop_registry:
            self._multiply(packet, args, keywords, outputs, self.work[name], origin)
        elif origin.would_vary and _may_multiply(func, args, keywords, self):
            self.work[name].unknown.append(str(packet))
        else:
            name = running
        if origin.would_vary:
            origin.layer = None
        for tensor in _tensors(outputs):
            known = self._origin(tensor, origin)
            known.varies |= origin.varies
            known.would_vary |= origin.would_vary
        work = self.work[name]
        work.peak = max(work.peak, self.alive)
        work.varies |= origin.varies
        work.would_vary |= origin.would_vary
        return outputs

    def _multiply(
        self,
        packet: Any,
        args: Sequence[Any],
        keywords: Mapping[str, Any],
        outputs: Any,
        work: Work,
        origin: _Origin,
    ) -> None:
        """Add an operation's multiplications, and see whether anything of them is left."""
        macs = _macs(packet, args, keywords, outputs)
        factors = [args[index] for index in _FACTORS.get(packet, ())]
        weights = [factor for factor in factors if self.made_of_weights(factor)]
        entries = sum(weight.numel() for weight in weights)
        kept = sum(int(weight.count_nonzero()) for weight in weights)
        work.macs += macs
        work.effective += macs * kept // entries if entries else macs
        if entries and not kept:
            added = [t for t in _tensors((args, keywords)) if not any(t is f for f in factors)]
            origin.varies = any(self._origin(tensor, _Origin()).varies for tensor in added)

    def made_of_weights(self, tensor: Tensor) -> bool:
        """Whether a tensor was made of parameters and of nothing that varies."""
        origin = self._origin(tensor, _Origin())
        return origin.layer is not None and not origin.would_vary

    def _origin(self, tensor: Tensor, unseen: _Origin) -> _Origin:
        """Return where a tensor's storage comes from; one that was not seen before is new."""
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
    """Whether an operation that nobody knows may multiply an activation by a matrix of weights."""
    if func.overloadpacket in _MOVING or torch.Tag.pointwise in func.tags:
        return False
    return any(
        tensor.ndim > 1 and counter.made_of_weights(tensor) for tensor in _tensors((args, keywords))
    )


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
