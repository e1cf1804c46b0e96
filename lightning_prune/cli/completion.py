"""Completion of the command line by the Tab key, without an import of torch."""

from collections.abc import Iterable, Sequence

import lightning_prune
from lightning_prune.cli.commands import MODELS, OTHERS
from lightning_prune.cli.help import (
    list_options,
    list_pruning_options,
    list_shared_options,
    list_trainer_options,
)

_SCRIPT = """\
# Add this line to ~/.bashrc:
#   eval "$(lightning-prune completion)"
# For zsh, add it to ~/.zshrc, behind this line:
#   autoload -U +X compinit bashcompinit && compinit && bashcompinit
_lightning_prune() {
    local IFS=$'\\n'
    COMPREPLY=($(lightning-prune completion words "${COMP_WORDS[@]:1:$COMP_CWORD}"))
}
complete -o default -F _lightning_prune lightning-prune
"""
_ANSWERS = ("Schedule", "Allocation", "Criterion", "Pattern", "Budget")


def complete(arguments: Sequence[str]) -> str:
    """Return the script for a shell, or the completions that this script asks for.

    Args:
        arguments: Empty for the script; else ``words``, and the words of a command line. The last
            word is completed.
    """
    if not arguments:
        return _SCRIPT
    *before, last = arguments[1:] or [""]
    prefix = ""
    if last.startswith("--") and "=" in last:  # zsh keeps --mode=max as a word
        name, _, last = last.partition("=")
        before, prefix = [*before, name], f"{name}="
    elif "=" in (last, *before[-1:]):  # bash makes three words of it
        before, last = [word for word in before if word != "="], last.removeprefix("=")
    words = _list_words(before)
    return "\n".join(f"{prefix}{word}" for word in words if word.startswith(last))


def _list_words(before: Sequence[str]) -> Iterable[str]:
    """Return the words that can follow others; none where a file or any value can follow."""
    if not before:
        return [*MODELS, *OTHERS, "--help", "--version"]
    command, last = before[0], before[-1]
    if command == "demo":
        command = "fit"
    if command not in MODELS:
        return []
    options = _list_values(command)
    values = options.get(last)
    return options if values is None else values


def _list_values(command: str) -> dict[str, Sequence[str] | None]:
    """Return the options of a subcommand with the values that are known; None for a flag."""
    found: dict[str, Sequence[str] | None] = {
        name: () if takes_value else None for name, takes_value in list_shared_options().items()
    }
    found |= {f"--{each.name}": each.words for each in list_options(command)}
    found |= {f"--pruning.{each.name}": each.words for each in list_pruning_options()}
    found |= {f"--trainer.{each.name}": each.words for each in list_trainer_options()}
    for answer in _ANSWERS:
        kinds = [name for name in dir(lightning_prune) if name.endswith(answer)]
        found[f"--pruning.{answer.lower()}"] = [name for name in kinds if name != answer]
    return found | {"--help": None}
