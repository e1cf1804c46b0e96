"""Names of modules, parameters and buffers, without the parts that `torch.compile` adds."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

Descent = Sequence[tuple[nn.Module, str]]
"""The way to a parameter: each module around it, outermost first, with the name of the next."""


def descend(modules: Mapping[str, nn.Module], name: str) -> Descent:
    """Return the way from the model to a parameter.

    Args:
        modules: All modules by qualified name; the model has the empty name.
        name: Qualified name of the parameter.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> descent = descend(dict(net.named_modules()), "0.weight")
        >>> [(type(module).__name__, name) for module, name in descent]
        [('Sequential', '0'), ('Linear', 'weight')]
    """
    parts = name.split(".")
    return [(modules[".".join(parts[:depth])], part) for depth, part in enumerate(parts)]


def plain_name(name: str) -> str:
    """Return a name without the parts that `torch.compile` adds.

    Examples:
        >>> plain_name("encoder._orig_mod.0.weight"), plain_name("encoder._orig_mod")
        ('encoder.0.weight', 'encoder')
    """
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def list_names(names: Sequence[str], at_most: int) -> str:
    """Return the first names in words, and the number of the others.

    Args:
        names: The names.
        at_most: How many names to list.

    Examples:
        >>> list_names(["a", "b", "c", "d"], at_most=2)
        'a, b and 2 more'
        >>> list_names(["a", "b"], at_most=2)
        'a, b'
    """
    rest = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def named_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter under each plain name that it has."""
    return {
        plain_name(name): parameter
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }


def named_tensors(module: nn.Module, *, remove_duplicate: bool = False) -> dict[str, Tensor]:
    """Return every parameter and buffer under its plain names.

    Args:
        module: The module.
        remove_duplicate: Whether a tied tensor comes once, under its first name.
    """
    found = [
        *module.named_parameters(remove_duplicate=remove_duplicate),
        *module.named_buffers(remove_duplicate=remove_duplicate),
    ]
    return {plain_name(name): tensor for name, tensor in found}


def named_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return every module under each plain name that it has.

    Under the name of a compiled module is the module inside, which holds the attributes.
    """
    modules = module.named_modules(remove_duplicate=False)
    return {plain_name(name): child for name, child in modules}


def owner_of(parameter: str) -> str:
    """Return the name of the module that a parameter belongs to.

    Examples:
        >>> owner_of("net.0.weight"), owner_of("net.parametrizations.weight.original0")
        ('net.0', 'net')
    """
    owner = f".{parameter}".rpartition(".")[0].partition(".parametrizations.")[0]
    return owner.removeprefix(".")
