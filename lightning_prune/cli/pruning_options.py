"""The options ``--pruning.*``: the `PruningCallback` of a command line."""

import re
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from lightning_prune.callbacks.pruning import PruningCallback

KEY = "pruning"

OWN_OPTION = re.compile(rf"--{KEY}(?:\+|\.[\w.]+\+?)?(?:=|$)")
_LIST_OF_CALLBACKS = re.compile(r"--trainer\.callbacks\+?(?:=|$)")
_FILE_OR_NUMBER = re.compile(rf"(?<!\S)--{KEY}[= ]([\d.]+|\S+\.ya?ml)(?!\S)")
_OPTION_OF_LAST_CALLBACK = re.compile(r"--trainer\.callbacks\.(?:init_args\.)?(?!help\b)(\w+)")


def add_pruning_options(parser: ArgumentParser) -> None:
    """Let a parser accept the key ``pruning``, also in a config.

    `resolve_pruning` checks the values later. Until then only the values that the user gives are
    known, without defaults.

    Args:
        parser: The parser of a subcommand.
    """
    parser.add_argument(
        f"--{KEY}",
        type=dict[str, Any],
        default=SUPPRESS,
        metavar="FILE",
        help="Arguments of the PruningCallback, as a YAML file.",
    )


def take_options(pattern: re.Pattern[str], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the options that a pattern matches, with their values, and all other arguments.

    Args:
        pattern: Matches the start of these options.
        arguments: The arguments of a command line.

    Examples:
        >>> given = ["--pruning.sparsity", "0.8", "--data", "Data", "--pruning.most=0.9"]
        >>> take_options(OWN_OPTION, given)
        (['--pruning.sparsity', '0.8', '--pruning.most=0.9'], ['--data', 'Data'])
    """
    own: list[str] = []
    others: list[str] = []
    takes_next = False
    for argument in arguments:
        is_own = pattern.match(argument) is not None
        is_value = takes_next and not argument.startswith("--")
        takes_next = is_own and "=" not in argument
        (own if is_own or is_value else others).append(argument)
    return own, others


def refuse_unclear_options(arguments: Sequence[str]) -> None:
    """Refuse a number without a name, and an option of an unknown callback.

    Args:
        arguments: The arguments of a subcommand.

    Raises:
        ValueError: If ``--pruning`` is a number, or if ``--trainer.callbacks.<name>`` comes before
            any ``--trainer.callbacks``: it would change the last callback of a config.
    """
    if found := _FILE_OR_NUMBER.search(" ".join(arguments)):
        number = f"; write --{KEY}.sparsity {found[1]}" if found[1][0].isdigit() else ""
        if number or not Path(found[1]).is_file():
            raise ValueError(f"need a YAML file for --{KEY}, got --{KEY} {found[1]}{number}")
    for argument in arguments:
        if _LIST_OF_CALLBACKS.match(argument):
            return
        if found := _OPTION_OF_LAST_CALLBACK.match(argument):
            raise ValueError(
                f"need a single callback to change, got {argument.partition('=')[0]}, which would "
                f"change the last callback of the config; write --pruning.{found[1]} for the "
                "PruningCallback, and change other callbacks in the config"
            )


def resolve_pruning(config: Namespace, arguments: Sequence[str] = ()) -> None:
    """Move the value of ``pruning`` into the callbacks of a config.

    A `PruningCallback` among the callbacks is changed. Without one, a new one comes first.

    Args:
        config: The config of a subcommand, which is changed.
        arguments: The options ``--pruning`` and ``--pruning.*`` of the command line.

    Raises:
        argparse.ArgumentError: If a value does not fit.
    """
    given = config.pop(KEY, None)
    if given or arguments:
        config.trainer.callbacks = _add_pruning(config.trainer.callbacks, given, arguments)


def _add_pruning(
    callbacks: Any, given: Mapping[str, Any] | None, arguments: Sequence[str]
) -> list[Namespace]:
    listed = list(callbacks) if isinstance(callbacks, list) else [callbacks] if callbacks else []
    place = next((n for n, callback in enumerate(listed) if _is_pruning(callback)), None)
    parser = ArgumentParser(exit_on_error=False, prog="lightning-prune")
    parser.add_subclass_arguments(PruningCallback, KEY, required=False)
    config = parser.parse_object({} if place is None else {KEY: listed[place]})
    if given is not None:
        config = parser.parse_object({KEY: given}, config)
    if arguments:
        config = parser.parse_args(list(arguments), config)
    if place is None:
        return [config[KEY], *listed]
    listed[place] = config[KEY]
    return listed


def _is_pruning(callback: Namespace) -> bool:
    """Whether a callback of a config, whose path was checked before, is a `PruningCallback`."""
    room, _, name = callback.class_path.rpartition(".")
    return issubclass(getattr(import_module(room), name), PruningCallback)
