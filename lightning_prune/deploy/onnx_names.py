"""What an ONNX file says for its readers: names of the outputs, and facts about the model."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_unflatten

from lightning_prune.models.trees import name_leaves

_PREFIX = "lightning_prune."


def name_outputs(program: torch.export.ExportedProgram, model: Any) -> None:
    """Give the outputs the names that they have in what ``forward`` returns.

    The exporter names an output after the operation behind it. The inputs have the names of the
    arguments of ``forward`` already.

    Args:
        program: The graph.
        model: The translated model (``onnx_ir.Model``), which changes.
    """
    outputs = list(model.graph.outputs)
    names = _read_names(program)
    is_plain = len(set(map(id, outputs))) == len(outputs) == len(names)
    if not is_plain or any(value.producer() is None for value in outputs):
        return  # an output twice, or an input as an output, has a name already
    taken = {value.name for value in (*model.graph.inputs, *model.graph.initializers.values())}
    taken |= {value.name for node in model.graph for value in node.outputs}
    taken -= {value.name for value in outputs}
    for value, name in zip(outputs, names, strict=True):
        while name in taken:
            name += "_"
        taken.add(name)
        value.name = name


def describe_model(
    program: torch.export.ExportedProgram, facts: Mapping[str, str]
) -> dict[str, str]:
    """Return the metadata of a file: the version of this package, the sparsity, and other facts.

    Args:
        program: The graph.
        facts: More facts, by name.
    """
    from lightning_prune import __version__

    names = set(program.graph_signature.inputs_to_parameters.values())
    weights = [program.state_dict[name] for name in names]
    matrices = [weight for weight in weights if weight.ndim > 1]
    zeros = sum(int((weight == 0).count_nonzero()) for weight in matrices)
    sparsity = zeros / max(sum(weight.numel() for weight in matrices), 1)
    described = {"version": __version__, "sparsity": f"{sparsity:.4f}", **facts}
    return {f"{_PREFIX}{name}": fact for name, fact in described.items()}


def _read_names(program: torch.export.ExportedProgram) -> list[str]:
    """Return the names of the outputs that are tensors."""
    nodes = program.graph.output_node().args[0]
    spec = program.call_spec.out_spec
    assert isinstance(nodes, tuple | list)
    tree = nodes[0] if spec is None else tree_unflatten(list(nodes), spec)
    is_named = isinstance(tree, Mapping) or hasattr(tree, "_fields")
    leaves = name_leaves(tree, "" if is_named else "output")
    return [re.sub(r"\W", "_", name) for name, leaf in leaves if isinstance(leaf, torch.fx.Node)]
