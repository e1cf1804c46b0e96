"""The help of the command and of its subcommands, without an import of torch."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator

from lightning_prune.cli.commands import LIGHTNINGS, MODELS, OTHERS, PRUNING
from lightning_prune.cli.signatures import (
    Argument,
    find_file,
    find_trainer_file,
    read_arguments,
)

PROGRAM = "lightning-prune"

_FIRST_STEPS = (
    "demo",
    "fit --config my.yaml --pruning.sparsity 0.8",
    "fit --help",
)
_NO_OPTIONS = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}
_SHARED = {
    "-c, --config FILE": "A YAML file with options; may be given more than once.",
    "--model CLASS": "A LightningModule by import path; --model.<argument>.",
    "--data CLASS": "A DataModule by import path; --data.<argument>.",
    "--optimizer CLASS": "An optimizer instead of that of the model.",
    "--lr_scheduler CLASS": "A scheduler instead of that of the model.",
    "--seed_everything SEED": "The seed of random numbers (default: a random seed).",
    "--print_config": "Print the config with all defaults, and stop.",
}
_MORE = {
    "--help.trainer": "Show the options --trainer.* of Lightning's Trainer.",
    "--pruning.help": "Show all about the options --pruning.*",
    "--model.help CLASS": "Show the arguments of a class, as --data.help does.",
}
_PRUNING_TITLE = "options that change the PruningCallback of the config, or add it"
_COLUMN = 25  # where the explanations start

Row = tuple[str, str]


def describe_all() -> str:
    """Return the help of the command: all subcommands, and the first steps."""
    lines = [f"usage: {PROGRAM} COMMAND [options]", ""]
    lines += ["Prune any LightningModule while it trains, and deploy the sparse model.", ""]
    lines += ["commands:", *(f"  {name:13}{text}" for name, text in (MODELS | OTHERS).items()), ""]
    lines += ["first steps:", *(f"  {PROGRAM} {step}" for step in _FIRST_STEPS)]
    return "\n".join(lines)


def describe_command(command: str) -> str:
    """Return the help of a subcommand: first the options of its own."""
    own = _describe(list_options(command), "--", is_short=command in LIGHTNINGS)
    pruning = list_pruning_options()
    if command == "fit":
        rows = list(_describe(pruning, "--pruning.", is_short=True))
    else:
        rows = [("--pruning.*", ", ".join(each.name for each in pruning))]
    return "\n".join(
        [
            f"usage: {PROGRAM} {command} --config FILE [options]",
            f"\n{MODELS[command]}",
            *_format_group(f"options of {command}", own),
            *_format_group(_PRUNING_TITLE, rows if command in PRUNING else []),
            *_format_group("options of all commands", _SHARED.items()),
            *_format_group("more help", _MORE.items()),
        ]
    )


def describe_trainer() -> str:
    """Return the help of the options of the Trainer."""
    rows = _describe(list_trainer_options(), "--trainer.")
    return "\n".join(_format_group("options of the Trainer", rows)).lstrip()


def list_options(command: str) -> tuple[Argument, ...]:
    """Return the options that only a subcommand has."""
    if command in LIGHTNINGS:
        found = read_arguments(find_trainer_file(), "Trainer", command)
    else:
        found = read_arguments(find_file("cli.trainer"), "PruneTrainer", command)
    return tuple(each for each in found if each.name not in _NO_OPTIONS)


def list_pruning_options() -> tuple[Argument, ...]:
    """Return the arguments of the `PruningCallback`."""
    return read_arguments(find_file("callbacks.pruning"), "PruningCallback", "__init__")


def list_trainer_options() -> tuple[Argument, ...]:
    """Return the arguments of Lightning's Trainer."""
    return read_arguments(find_trainer_file(), "Trainer", "__init__")


def list_shared_options() -> dict[str, bool]:
    """Return the options that all subcommands have, and whether a value follows."""
    names = [re.findall(r"--[\w.]+|[A-Z]+$", row) for row in (*_SHARED, *_MORE)]
    return {name: bool(value) for name, *value in names}


def _describe(options: Iterable[Argument], prefix: str, *, is_short: bool = False) -> Iterator[Row]:
    """Yield the name, with values that are words, and the explanation of each option.

    Args:
        options: The options.
        prefix: The start of each name.
        is_short: Whether the first sentence is enough.
    """
    for option in options:
        text = re.sub(r"``|`|:\w+:", "", option.text).strip()
        if is_short:
            text = _shorten(text)
        if option.default is None:
            text += " (required)"
        elif option.default not in ("null", "") and "default" not in text.lower():
            text += f" (default: {option.default})"
        has_words = option.words not in ((), ("true", "false"))
        yield f"{prefix}{option.name}" + f" {{{','.join(option.words)}}}" * has_words, text


def _shorten(text: str) -> str:
    """Return the first thought that says more than the default.

    Examples:
        >>> _shorten("Defaults to None. If True, print the results. More follows.")
        'If True, print the results'
        >>> _shorten("The largest sparsity; null for no limit.")
        'The largest sparsity'
    """
    text = text.removeprefix("Defaults to None. ")
    return re.split(r"; null\b|; or\b|\.(?: |$)|: (?=[a-z])", text)[0]


def _format_group(title: str, rows: Iterable[Row]) -> Iterator[str]:
    """Yield the lines of a group of options, in two columns; nothing for an empty group."""
    width = min(shutil.get_terminal_size().columns, 100) - _COLUMN
    for number, (names, text) in enumerate(rows):
        if number == 0:
            yield f"\n{title}:"
        lines = textwrap.wrap(text, width)
        head = f"  {names}"
        if len(head) >= _COLUMN:
            yield head
            head = ""
        yield head.ljust(_COLUMN) + lines[0]
        yield from (" " * _COLUMN + line for line in lines[1:])
