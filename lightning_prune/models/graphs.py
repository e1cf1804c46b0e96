"""Models that are graphs, as `torch.export` makes them: plain modules hold the parameters."""

from torch import nn
from torch.fx import GraphModule, Node


def find_tables(module: nn.Module) -> set[int]:
    """Return the ids of the parameters in which the graphs of a module look up embeddings.

    An exported model, also prepared for PT2E quantization, has a plain ``Module`` in the place of
    an ``Embedding``. Only the operation that reads the parameter says what it is.

    Args:
        module: A module with any number of graphs; none in most models.

    Examples:
        >>> import torch
        >>> from torch.fx import Graph
        >>> owner, graph = nn.Module(), Graph()
        >>> owner.table = nn.Parameter(torch.zeros(4, 2))
        >>> words = graph.placeholder("words")
        >>> found = graph.call_function(nn.functional.embedding, (words, graph.get_attr("table")))
        >>> find_tables(GraphModule(owner, graph)) == {id(owner.table)}
        True
    """
    return {
        id(parameters[read.target])
        for graph in module.modules()
        if isinstance(graph, GraphModule)
        for parameters in [dict(graph.named_parameters(remove_duplicate=False))]
        for node in graph.graph.nodes
        if node.op == "call_function" and "embedding" in getattr(node.target, "__name__", "")
        for read in node.args
        if isinstance(read, Node) and read.op == "get_attr" and read.target in parameters
    }
