"""The causes of a config error, in a line each, with the candidates for a wrong name."""

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module

from lightning_prune.arguments.words import suggest
from lightning_prune.callbacks.namespace import (
    LightningCallback,
    LightningCheckpoint,
    comes_from,
    find_package,
)
from lightning_prune.cli.wrong_values import explain_wrong_values

_UNKNOWN_NAME = re.compile(
    r"Subtypes: \[(?:<class 'NoneType'>, )?(?:list\[)?(?:<class ')?([\w.]+)[^\n]*\n\s*Errors:\n"
    r"(?:\s*- Expected a <class 'NoneType'>\n)?\s*- Expected a dot import path string: (\S+)"
)
_UNKNOWN_OPTION = re.compile(r"given class_path '([\w.]+)':\n\s*Option '([\w.*]+)' is not accepted")
_UNKNOWN_KEY = re.compile(r"does not accept option '([\w.]+)'")
_UNKNOWN_FLAG = re.compile(r"^[Uu]nrecognized arguments: --([\w.]+)")
_UNKNOWN_ATTRIBUTE = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
_UNKNOWN_MODULE = re.compile(r"No module named '([\w.]+)'")
_WRONG_BASE = re.compile(
    r"Subtypes: \[(?:list\[)?(?:<class ')?([\w.]+)[^\n]*\n(.* not correspond to a subclass of .*)",
    re.DOTALL,
)
_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*\.\w+")
_TWICE = re.compile(r"Found more than one stateful callback of type `(\w+)`")
_MISSING_FILE = re.compile(r"Parser key \"(\w+)\":\s*File does not exist: '([^']+)'")
_MISSING_OPTIONS = re.compile(r"the following arguments are required: (.+)")
_WRONG_TYPE = re.compile(
    r"^Parser key \"([\w.]+)\":.*(?:Given|Got) value: (.+?)$", re.DOTALL | re.MULTILINE
)
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a string",
    "NoneType": "null",
}
_PLAIN_TYPE = re.compile(rf"Expected a <class '({'|'.join(_WORDS)})'>")
_BAD_VALUE = re.compile(r"^[\s-]*(need [^\n]+, got [^\n]+)$", re.MULTILINE)


def explain(message: str, keys: Sequence[str] = ()) -> str | None:
    """Return a line for each cause in a message of jsonargparse; None if no cause is known.

    A config's callbacks are a union of lists and classes. So jsonargparse lists the failures of
    all alternatives around the cause.

    Args:
        message: The whole message.
        keys: The keys that a config can have.
    """
    causes = (
        list(dict.fromkeys(_causes(message, keys)))
        or list(explain_wrong_values(message))
        or list(_wrong_types(message))
    )
    return "\n".join(causes) or None


def is_refusal(message: str) -> bool:
    """Whether a message is that of an error of this package: ``need ..., got ...``."""
    return _BAD_VALUE.match(message) is not None


def _causes(message: str, keys: Sequence[str]) -> Iterator[str]:
    yield from _unknown_names(message)
    yield from _unknown_keys(message, keys)
    yield from _unknown_imports(message)
    yield from _other_packages(message)
    for name in _TWICE.findall(message):
        yield (
            f"need one {name} in a Trainer, got two; `--trainer.callbacks+=` adds a callback to "
            "those of a config"
        )
    for key, path in _MISSING_FILE.findall(message):
        yield f"need an existing file, got --{key} {path}"
    if found := _MISSING_OPTIONS.search(message):
        options = re.sub(r"\b(\w+)\.(\w+)", r"--\2", found[1])
        yield f"need a value for {options}, got none; write it, or add it to the config"
    yield from _BAD_VALUE.findall(message)


def _wrong_types(message: str) -> Iterator[str]:
    """Yield the plain types that the value of an option can have."""
    found, kinds = _WRONG_TYPE.search(message), _PLAIN_TYPE.findall(message)
    if found and len(kinds) == message.count("Expected a") > 0:
        known = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
        yield f"need {known} for --{found[1]}, got {found[2]}"


def _unknown_names(message: str) -> Iterator[str]:
    """Yield the unknown classes and arguments of classes."""
    for base, name in _UNKNOWN_NAME.findall(message):
        names = sorted(child.__name__ for child in _concrete_subclasses(_import(base)))
        kind = base.rpartition(".")[2]
        yield f"unknown {kind} '{name}'{_suggestion(name, [*names, 'a full import path'])}"
    for path, option in _UNKNOWN_OPTION.findall(message):
        name = option.split(".")[0]
        yield f"unknown argument '{name}' of {path}{_suggestion(name, _arguments(_import(path)))}"


def _unknown_keys(message: str, keys: Sequence[str]) -> Iterator[str]:
    for key in _UNKNOWN_KEY.findall(message) + _UNKNOWN_FLAG.findall(message):
        close = get_close_matches(key, sorted(set(keys)), n=3)
        yield f"unknown key '{key}'{_suggestion(key, close)}"


def _unknown_imports(message: str) -> Iterator[str]:
    for module, name in _UNKNOWN_ATTRIBUTE.findall(message):
        classes = [
            key for key in _public_names(module) if inspect.isclass(_import(f"{module}.{key}"))
        ]
        yield f"unknown class '{name}' in module '{module}'{_suggestion(name, classes)}"
    for module in _UNKNOWN_MODULE.findall(message):
        yield f"unknown module '{module}'; the current directory is searched, too"


def _other_packages(message: str) -> Iterator[str]:
    """Yield the classes from another package of Lightning than that of the model."""
    for base, rest in _WRONG_BASE.findall(message):
        for path in _IMPORT_PATH.findall(rest):
            with suppress(Exception):  # of a text that is no class of Lightning
                package, kind = find_package(_import(base)), _import(path)
                if not comes_from(package, kind):
                    yield _describe_other_package(package.__name__, path, kind)


def _describe_other_package(package: str, path: str, kind: type) -> str:
    other = find_package(kind).__name__
    remedy = f"let {kind.__name__} inherit from {package}"
    if path.startswith(f"{other}."):
        remedy = f"write {package}{path.removeprefix(other)}"
    return f"need classes of {package}, as the model is, got {path} of {other}; {remedy}"


def _suggestion(name: str, candidates: Sequence[str]) -> str:
    guess = suggest(name, candidates)
    return f"{guess or ';'} It can be: {', '.join(candidates)}" if candidates else guess


def _arguments(kind: type) -> list[str]:
    """Return the arguments of a constructor, with those that ``**kwargs`` pass on to a base."""
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


def _import(path: str) -> type:
    module, _, name = path.rpartition(".")
    found: type = getattr(import_module(module), name)
    return found


def _concrete_subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for child in children:
        if not inspect.isabstract(child) and child not in (LightningCallback, LightningCheckpoint):
            yield child
        yield from _concrete_subclasses(child)
