"""What is wrong with a config, in one line that names the candidates."""

import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module

_UNKNOWN_NAME = re.compile(
    r"Subtypes: \[(?:<class 'NoneType'>, )?(?:list\[)?(?:<class ')?([\w.]+)[^\n]*\n\s*Errors:\n"
    r"(?:\s*- Expected a <class 'NoneType'>\n)?\s*- Expected a dot import path string: (\S+)"
)
_UNKNOWN_OPTION = re.compile(r"given class_path '([\w.]+)':\n\s*Option '([\w.*]+)' is not accepted")
_UNKNOWN_KEY = re.compile(r"does not accept option '([\w.]+)'")
_UNKNOWN_FLAG = re.compile(r"^[Uu]nrecognized arguments: --([\w.]+)")
_UNKNOWN_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_UNKNOWN_MODULE = re.compile(r"No module named '([\w.]+)'")
_TWICE = re.compile(r"Found more than one stateful callback of type `(\w+)`")
_BAD_VALUE = re.compile(r"^[\s-]*(need [^\n]+, got [^\n]+)$", re.MULTILINE)


def explained(message: str, keys: Sequence[str] = ()) -> str | None:
    """Return the causes inside a message of jsonargparse, a line each; None if none is known.

    A config's callbacks are a union of lists and classes, so the one cause that matters is buried
    among the failures of every alternative.

    Args:
        message: The whole message.
        keys: The keys that a config can have.
    """
    causes = list(dict.fromkeys(_causes(message, keys)))
    return "\n".join(causes) or None


def _causes(message: str, keys: Sequence[str]) -> Iterator[str]:
    for base, name in _UNKNOWN_NAME.findall(message):
        names = sorted(child.__name__ for child in _descendants(_imported(base)))
        kind = base.rpartition(".")[2]
        yield f"unknown {kind} '{name}'{_suggestion(name, [*names, 'a full import path'])}"
    for path, option in _UNKNOWN_OPTION.findall(message):
        name = option.split(".")[0]
        yield f"unknown argument '{name}' of {path}{_suggestion(name, _arguments(_imported(path)))}"
    for key in _UNKNOWN_KEY.findall(message) + _UNKNOWN_FLAG.findall(message):
        close = get_close_matches(key, sorted(set(keys)), n=3)
        yield f"unknown key '{key}'{_suggestion(key, close)}"
    for module, name in _UNKNOWN_ATTRIBUTE.findall(message):
        classes = [
            key for key in _public_names(module) if inspect.isclass(_imported(f"{module}.{key}"))
        ]
        yield f"unknown class '{name}' in module '{module}'{_suggestion(name, classes)}"
    for module in _UNKNOWN_MODULE.findall(message):
        yield f"unknown module '{module}'; it is searched in the current directory, too"
    for name in _TWICE.findall(message):
        yield (
            f"need one {name} in a Trainer, got two; `--trainer.callbacks+=` adds to those of a "
            "config instead of changing them"
        )
    yield from _BAD_VALUE.findall(message)


def _suggestion(name: str, candidates: Sequence[str]) -> str:
    close = get_close_matches(name, candidates, n=1)
    guess = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{guess} It can be: {', '.join(candidates)}" if candidates else guess.rstrip(";")


def _arguments(kind: type) -> list[str]:
    """Return the arguments of a constructor, also of those that its ``**kwargs`` go on to."""
    names: list[str] = []
    for base in kind.__mro__:
        parameters = inspect.signature(base).parameters.values()
        names += [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))


def _public_names(module: str) -> list[str]:
    loaded = import_module(module)
    return list(getattr(loaded, "__all__", [n for n in vars(loaded) if not n.startswith("_")]))


def _imported(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _descendants(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        if not inspect.isabstract(child):
            yield child
        yield from _descendants(child)
