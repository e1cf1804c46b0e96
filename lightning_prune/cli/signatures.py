"""Arguments of functions, read from the source: importing the functions would import torch."""

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).parent.parent
_TRAINERS = {"lightning": "pytorch/trainer/trainer.py", "pytorch_lightning": "trainer/trainer.py"}
_EXPLAINED = re.compile(r"^ {4}(\w+): *(.*)$")
_YAML = {None: "null", True: "true", False: "false"}
_NO_DEFAULT = object()


@dataclass(frozen=True, kw_only=True)
class Argument:
    """An argument of a function.

    Args:
        name: The name.
        words: The values, if the annotation lists them; else empty.
        text: The explanation in the docstring, in a line.
        default: The default as YAML writes it; None for an argument that is required.
    """

    name: str
    words: tuple[str, ...]
    text: str
    default: str | None


def find_file(room: str) -> Path:
    """Return the file of a room of this package, such as ``"cli.trainer"``."""
    return _PACKAGE.joinpath(*room.split(".")).with_suffix(".py")


def find_trainer_file() -> Path:
    """Return the file of Lightning's Trainer, from the first package that is installed.

    Raises:
        ImportError: If neither package is installed.
    """
    for package, file in _TRAINERS.items():
        spec = find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return Path(spec.submodule_search_locations[0], file)
    raise ImportError("need lightning or pytorch_lightning, got neither; pip install lightning")


@cache
def read_arguments(path: Path, kind: str, function: str) -> tuple[Argument, ...]:
    """Return the arguments of a method, in their order and without ``self``.

    Args:
        path: The file.
        kind: The class in the file.
        function: The method. The class may explain the arguments of the constructor.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    room = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == kind)
    method = next(n for n in room.body if isinstance(n, ast.FunctionDef) and n.name == function)
    texts = dict(_read_texts(ast.get_docstring(method) or ast.get_docstring(room) or ""))
    constants = _Constants(tree)
    names = method.args.args[1:] + method.args.kwonlyargs
    required = [_NO_DEFAULT] * (len(method.args.args) - 1 - len(method.args.defaults))
    defaults: list[Any] = [*required, *method.args.defaults, *method.args.kw_defaults]
    return tuple(
        Argument(
            name=each.arg,
            words=_list_words(each.annotation, constants),
            text=texts.get(each.arg, ""),
            default=_write_default(default, constants),
        )
        for each, default in zip(names, defaults, strict=True)
    )


def _read_texts(docstring: str) -> Iterator[tuple[str, str]]:
    """Yield the name and the explanation of each argument in a docstring of Google style."""
    lines = iter(docstring.partition("Args:\n")[2].splitlines())
    name, words = "", list[str]()
    for line in lines:
        if line and not line.startswith(" "):
            break
        if found := _EXPLAINED.match(line):
            yield name, " ".join(words)
            name, words = found[1], [found[2]]
        else:
            words.append(line.strip())
    yield name, " ".join(words)


class _Constants(dict[str, ast.expr]):
    """The constants of a file by name, also those that it imports from this package."""

    def __init__(self, tree: ast.Module) -> None:
        super().__init__(_list_assigned(tree))
        self._rooms = {
            alias.name: node.module
            for node in tree.body
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE.name)
            for alias in node.names
        }

    def __missing__(self, name: str) -> ast.expr | None:
        room = self._rooms.get(name)
        if room is None:
            return None
        path = find_file(room.partition(".")[2])
        return _list_assigned(ast.parse(path.read_text(encoding="utf-8"))).get(name)


def _list_assigned(tree: ast.Module) -> dict[str, ast.expr]:
    return {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _list_words(hint: ast.expr | None, constants: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the values that an annotation lists; no values if it takes others, too."""
    if isinstance(hint, ast.BinOp):
        parts = [hint.left, hint.right]
        inner = [p for p in parts if not (isinstance(p, ast.Constant) and p.value is None)]
        return _list_words(inner[0], constants) if len(inner) == 1 else ()
    if isinstance(hint, ast.Subscript) and isinstance(hint.value, ast.Name):
        if hint.value.id == "Optional":
            return _list_words(hint.slice, constants)
        if hint.value.id == "Literal":
            listed = hint.slice.elts if isinstance(hint.slice, ast.Tuple) else [hint.slice]
            return tuple(str(word.value) for word in listed if isinstance(word, ast.Constant))
    if isinstance(hint, ast.Name):
        if hint.id == "bool":
            return ("true", "false")
        return _list_words(constants[hint.id], constants)
    return ()


def _write_default(node: Any, constants: Mapping[str, Any]) -> str | None:
    if node is None or node is _NO_DEFAULT:
        return None
    if isinstance(node, ast.Name):
        node = constants[node.id] or node
    try:
        value = ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
    if isinstance(value, tuple):
        return str(list(value))
    return _YAML.get(value, str(value)) if isinstance(value, bool | None) else str(value)
