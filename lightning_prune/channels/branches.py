"""Residual branches of a module: what is added to a stream, and can be left out exactly."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_prune.channels.absent import Absence, find_absent_outputs
from lightning_prune.channels.operations import operation_name
from lightning_prune.models.calls import Call
from lightning_prune.models.compiled import copy_uncompiled
from lightning_prune.models.errors import describe_error, locate_error
from lightning_prune.models.names import owner_of, plain_name
from lightning_prune.models.tracing import trace

_ADDITIONS = ("add",)
_PASSING = ("to", "contiguous", "type_as", "alias", "detach")
_PRODUCTS = (
    *("linear", "addmm", "mm", "bmm", "matmul", "baddbmm", "einsum", "bilinear"),
    *("scaled_dot_product_attention", "convolution", "conv1d", "conv2d", "conv3d"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "lstm", "gru"),
)


@dataclass(frozen=True, kw_only=True)
class Branch:
    r"""A residual branch :math:`f` of :math:`x + f(x)`, with modules of its own.

    If all its parameters are zero, :math:`f(x) = 0`. Then the branch can be left out.

    Args:
        parameters: Names of the parameters of these modules, in the order of the model.
        modules: Names of the outermost modules in which the branch is computed, in the order of
            the computation.
        inside: Names of all modules whose code computes a part of the branch.
        kind: A description that branches share if they cost the same and are made alike.
        absences: What takes the place of each module if the branch is left out.
        why_dense: Why the branch cannot be left out; None if it can, as far as the graph tells.
    """

    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    inside: tuple[str, ...]
    kind: str
    absences: tuple[Absence, ...] = ()
    why_dense: str | None = None

    @property
    def name(self) -> str:
        """The name of the last module, which computes the result of the branch."""
        return self.modules[-1]


def find_branches(module: nn.Module, call: Call) -> tuple[Branch, ...]:
    """Trace a module, and return the residual branches, in the order of the computation.

    A branch is an operand of an addition of two activations of one shape. All that it is computed
    from flows into this addition alone, except the stream :math:`x` and values that other parts of
    the module need too. The stream has the shape of the result, and the other operand depends on
    it. Of two such operands the one with more products is the branch, and of branches inside of
    each other the innermost.

    Args:
        module: The module; it is left as it is.
        call: The arguments of ``forward``.

    Raises:
        ValueError: If the module cannot be traced.
    """
    call = call.double_single_sample()
    program = _trace_either_mode(module, call)
    graph = _Graph(program)
    regions = [region for node in graph.nodes for region in _find_regions(graph, node)]
    innermost = [
        region for region in regions if not any(other.nodes < region.nodes for other in regions)
    ]
    parameters = [plain_name(name) for name, _ in module.named_parameters()]
    found = [_describe(graph, region, parameters) for region in innermost]
    branches = [branch for branch in found if branch is not None]
    outputs = find_absent_outputs(
        copy_uncompiled(module),
        call,
        names=[name for branch in branches for name in branch.modules],
        last={branch.name for branch in branches},
    )
    return tuple(_find_absences(branch, outputs) for branch in branches)


def _trace_either_mode(module: nn.Module, call: Call) -> torch.export.ExportedProgram:
    """Trace a copy in evaluation mode, or in training mode if that is the only mode."""
    found = _try_trace(copy_uncompiled(module).eval(), call)
    if not isinstance(found, Exception):
        return found
    trained = _try_trace(copy_uncompiled(module).train(), call)
    if not isinstance(trained, Exception):
        return trained
    raise ValueError(
        "need a forward that torch.export can trace, to find residual branches, got "
        f"{describe_error(found)}{locate_error(found)}"
    )


def _try_trace(module: nn.Module, call: Call) -> torch.export.ExportedProgram | Exception:
    try:
        return trace(module, call)
    except Exception as error:  # of the model's own code
        return error


class _Graph:
    """A graph, with the nodes that its outputs depend on."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.nodes: list[fx.Node] = list(program.graph.nodes)
        signature = program.graph_signature
        stored = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.parameters = {
            node: plain_name(signature.inputs_to_parameters[node.name])
            for node in self.nodes
            if node.op == "placeholder" and node.name in signature.inputs_to_parameters
        }
        inputs = set(signature.user_inputs)
        self.stored = {n for n in self.nodes if n.op == "placeholder" and n.name in stored}
        self.fed: set[fx.Node] = set()
        for node in self.nodes:
            if node.name in inputs or not self.fed.isdisjoint(node.all_input_nodes):
                self.fed.add(node)
        self.live: set[fx.Node] = set()
        for node in reversed(self.nodes):
            if node.op == "output" or not self.live.isdisjoint(node.users):
                self.live.add(node)
        self.positions = {node: position for position, node in enumerate(self.nodes)}

    def users(self, node: fx.Node) -> set[fx.Node]:
        """Return the users that the outputs depend on."""
        return self.live & set(node.users)

    def ancestors(self, node: fx.Node) -> set[fx.Node]:
        """Return a node and all nodes that it is computed from."""
        found, waiting = {node}, [node]
        for each in waiting:  # it grows on the way
            new = [source for source in each.all_input_nodes if source not in found]
            found.update(new)
            waiting += new
        return found


@dataclass(frozen=True, kw_only=True)
class _Region:
    """The nodes that flow into an operand of an addition alone."""

    nodes: frozenset[fx.Node]
    tip: fx.Node

    @property
    def products(self) -> int:
        """Number of products."""
        return sum(_is_product(node) for node in self.nodes)


def _find_regions(graph: _Graph, node: fx.Node) -> Iterator[_Region]:
    """Yield the branch that an addition adds, if it adds one."""
    if node not in graph.live or node.op != "call_function" or not _is_addition(graph, node):
        return
    first, second = node.args[:2]
    assert isinstance(first, fx.Node)
    assert isinstance(second, fx.Node)
    found = [_find_region(graph, node, *pair) for pair in ((second, first), (first, second))]
    regions = [region for region in found if region is not None]
    if regions:
        yield max(regions, key=lambda region: region.products)


def _is_addition(graph: _Graph, node: fx.Node) -> bool:
    """Whether a node adds two activations of one shape, as they are."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if operation_name(node) not in _ADDITIONS or node.kwargs.get("alpha", 1) != 1:
        return False
    operands = node.args[:2]
    if len(operands) < 2 or not all(isinstance(each, fx.Node) for each in operands):
        return False
    shape = _shape(node)
    return operands[0] is not operands[1] and all(
        each in graph.fed and _shape(each) == shape for each in operands
    )


def _find_region(graph: _Graph, addition: fx.Node, tip: fx.Node, other: fx.Node) -> _Region | None:
    """Return what flows into one operand alone; None if that is no branch of the stream."""
    if graph.users(tip) != {addition} or tip.op != "call_function":
        return None
    nodes = {tip}
    for node in reversed(graph.nodes[: graph.positions[tip]]):
        users = graph.users(node)
        is_inside = users and users <= nodes
        if is_inside and (node.op == "call_function" or node in graph.stored):
            nodes.add(node)
    around = {source for node in nodes for source in node.all_input_nodes} - nodes
    stream = graph.ancestors(other)
    enters = any(
        node in graph.fed and node in stream and _shape(node) == _shape(tip) for node in around
    )
    has_parameters = any(node in graph.parameters for node in nodes)
    return _Region(nodes=frozenset(nodes), tip=tip) if enters and has_parameters else None


def _describe(graph: _Graph, region: _Region, parameters: Sequence[str]) -> Branch | None:
    """Return the branch of a region; None if no module is in the region alone."""
    nodes = sorted(region.nodes - graph.stored, key=lambda node: graph.positions[node])
    owned = _find_owned(graph, region.nodes)
    outermost = [name for name in owned if not any(_is_around(other, name) for other in owned)]
    last = {name: index for index, node in enumerate(nodes) for name in _modules(node)}
    modules = tuple(sorted(outermost, key=lambda name: last[name]))
    names = [each for each in parameters if any(_is_around(name, each) for name in modules)]
    inside_region = {graph.parameters[node] for node in region.nodes & graph.parameters.keys()}
    if not inside_region.intersection(names):
        return None
    outside = next((n for n in nodes if _is_product(n) and not owned & set(_modules(n))), None)
    why = None
    if outside is not None:
        why = f"'{_modules(outside)[-1]}' computes a product of the branch in its own code"
    elif used := sorted(set(names) - inside_region):
        why = f"'{used[0]}' is used elsewhere, or not at all"
    return Branch(
        parameters=tuple(names),
        modules=modules,
        inside=tuple(dict.fromkeys(_modules(node)[-1] for node in nodes if _modules(node))),
        kind=" ".join(f"{operation_name(n)}{list(_shape(n))}" for n in nodes if _is_called(n)),
        why_dense=why,
    )


def _find_owned(graph: _Graph, region: Set[fx.Node]) -> set[str]:
    """Return the names of the modules all of whose code computes a part of the region."""
    owned: dict[str, bool] = {}
    for node in graph.nodes:
        if node in graph.live and node.op == "call_function" and not _passes_on(node):
            for name in _modules(node):
                owned[name] = owned.get(name, True) and node in region
    return {name for name, is_owned in owned.items() if is_owned and name}


def _find_absences(branch: Branch, outputs: Mapping[str, str | None]) -> Branch:
    """Return the branch with what takes the place of each module, or why nothing can."""
    if branch.why_dense is not None:
        return branch
    absences = []
    for name in branch.modules:
        words = outputs[name]
        if words is None:
            return replace(branch, why_dense=f"'{name}' returns something else than tensors")
        absences.append(Absence(module=name, outputs=words))
    return replace(branch, absences=tuple(absences))


def _modules(node: fx.Node) -> list[str]:
    """Return the names of the modules whose code calls an operation, the outermost first."""
    stack: Iterable[Any] = node.meta.get("nn_module_stack", {}).values()
    return [plain_name(entry[0].partition("@")[0]) for entry in stack]


def _is_around(module: str, name: str) -> bool:
    """Whether a module holds another module, or a parameter."""
    return name.startswith(f"{module}.") or (owner_of(name) == module)


def _is_called(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload)


def _passes_on(node: fx.Node) -> bool:
    """Whether an operation returns its argument, such as a cast to the dtype of the argument.

    Then the graph calls the stream by the name of this result from here on.
    """
    if not _is_called(node) or operation_name(node) not in _PASSING:
        return False
    before, after = (each.meta.get("val") for each in (node.all_input_nodes[0], node))
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return False
    return before.shape == after.shape and before.dtype == after.dtype


def _is_product(node: fx.Node) -> bool:
    return _is_called(node) and operation_name(node) in _PRODUCTS


def _shape(node: object) -> tuple[int, ...]:
    """Return the shape of a result; of several results, that of the first; else no axes."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    value = value[0] if isinstance(value, list | tuple) and value else value
    return tuple(value.shape) if isinstance(value, Tensor) else ()
