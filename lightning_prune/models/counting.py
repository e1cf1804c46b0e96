"""A forward pass under observation: multiplications, memory, and layers without an effect."""

import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from lightning_prune.models.calls import Call
from lightning_prune.models.compiled import run_uncompiled
from lightning_prune.models.multiplying import count_macs, find_factors, moves, multiplies
from lightning_prune.models.names import owner_of, plain_name
from lightning_prune.models.trees import find_tensors
from lightning_prune.models.undisturbed import use_plain_kernels


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
class Factors:
    """The multiplications of a forward pass by the factors that they read.

    Attributes:
        parameters: By the name of the parameter whose entries are those of the factor: the
            parameter itself, or the weight that views, slices, transposes or a parametrization
            make of the parameter. A fraction where slices are used unequally often.
        computed: Those by other weights, made of parameters, such as the product of two matrices;
            by the name of the layer.
        activations: Those of activations with each other; by the name of the running module.
    """

    parameters: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    computed: dict[str, Fraction] = field(default_factory=lambda: defaultdict(Fraction))
    activations: dict[str, int] = field(default_factory=lambda: defaultdict(int))


@dataclass(frozen=True, kw_only=True)
class Pass:
    """The work of a whole forward pass.

    Args:
        work: By the name of the module that holds the weights, or that works without weights.
        factors: All multiplications, by the factors.
        used: Names of the modules whose parameters took part.
        peak: The most bytes of activations that were alive at once, the input included.
        constant: Whether zeros keep all outputs from changing with the input.
    """

    work: Mapping[str, Work]
    factors: Factors
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
        parameters: The parameters whose entries these are, with the share of each.
        varies: Whether they change with the input of the model.
        would_vary: Whether they would change if no weight were zero.
    """

    layer: str | None = None
    parameters: Mapping[str, Fraction] = field(default_factory=dict)
    varies: bool = False
    would_vary: bool = False


_CONSTANT = _Origin()


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor from parameters and input to the output."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = {layer: plain_name(name) for name, layer in module.named_modules()}
        self.work: dict[str, Work] = defaultdict(Work)
        self.factors = Factors()
        self.origins: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self.running: list[str] = []
        self.used: set[str] = set()
        self.alive = self.peak = 0
        for buffer in module.buffers():
            self.origins[buffer.untyped_storage()] = _Origin()
        for raw, parameter in module.named_parameters():
            name = plain_name(raw)
            self.origins[parameter.untyped_storage()] = _Origin(
                layer=owner_of(name), parameters={name: Fraction(1)}
            )

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
        return Pass(
            work=self.work, factors=self.factors, used=self.used, peak=self.peak, constant=constant
        )

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
        if not multiplies(packet):
            with self:
                decomposed = func.decompose(*args, **keywords)
            if decomposed is not NotImplemented:
                return decomposed
        sources = find_tensors((args, keywords))
        origin = self._join_origins(sources)
        outputs = func(*args, **keywords)
        name = running = self.running[-1] if self.running else ""
        if origin.layer is not None:
            name = origin.layer
        if multiplies(packet):
            self._multiply(packet, args, keywords, outputs, name, origin)
        elif origin.would_vary and _may_multiply(func, args, keywords, self):
            self.work[name].unknown.append(str(packet))
        else:
            name = running
        results = find_tensors(outputs)
        if results and not multiplies(packet) and not origin.would_vary:
            origin.parameters = self._find_parameters(sources, results[0].numel())
        self._note_outputs(results, origin, self.work[name])
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

    def _find_parameters(self, sources: Sequence[Tensor], size: int) -> Mapping[str, Fraction]:
        """Return the parameters whose entries are those of a result, with the share of each.

        They are those of the first source of the same size, as `torch.mul` has it, or of all
        sources, side by side, as `torch.cat` has them, or of the only parameter there is.
        """
        made = [(tensor.numel(), self._origin(tensor).parameters) for tensor in sources]
        made = [(number, parameters) for number, parameters in made if parameters]
        for number, parameters in made:
            if number == size or all(parameters == others for _, others in made):
                return parameters
        if sum(number for number, _ in made) != size:
            return {}
        shares: dict[str, Fraction] = defaultdict(Fraction)
        for number, parameters in made:
            for name, share in parameters.items():
                shares[name] += share * number / size
        return shares

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
        name: str,
        origin: _Origin,
    ) -> None:
        """Add an operation's multiplications; if all are by zero, the result varies no more."""
        macs = count_macs(packet, args, keywords, outputs)
        factors = find_factors(packet, args)
        weights = [factor for factor in factors if self.made_of_weights(factor)]
        entries = sum(weight.numel() for weight in weights)
        kept = sum(int(weight.count_nonzero()) for weight in weights)
        self.work[name].macs += macs
        self.work[name].effective += macs * kept // entries if entries else macs
        if entries and not kept:
            added = [t for t in find_tensors((args, keywords)) if not any(t is f for f in factors)]
            origin.varies = any(self._origin(tensor).varies for tensor in added)
        for weight in weights if entries else ():
            self._note_factor(weight, Fraction(macs * weight.numel(), entries), name)
        if not entries:
            self.factors.activations[name] += macs

    def _note_factor(self, weight: Tensor, macs: Fraction, layer: str) -> None:
        """Note the multiplications by a weight, for each parameter whose entries these are."""
        parameters = self._origin(weight).parameters
        for name, share in parameters.items():
            self.factors.parameters[name] += macs * share
        if not parameters:
            self.factors.computed[layer] += macs

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


def _may_multiply(
    func: Any, args: Sequence[Any], keywords: Mapping[str, Any], counter: _Counter
) -> bool:
    """Whether an unknown operation may multiply an activation by a matrix of weights."""
    if moves(func.overloadpacket) or torch.Tag.pointwise in func.tags:
        return False
    return any(
        tensor.ndim > 1 and counter.made_of_weights(tensor)
        for tensor in find_tensors((args, keywords))
    )
