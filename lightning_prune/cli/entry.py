"""The entry of the command: what needs no model is answered before torch is imported."""

import sys
from typing import NoReturn

from lightning_prune import __version__
from lightning_prune.arguments.words import suggest
from lightning_prune.cli.commands import MODELS, OTHERS
from lightning_prune.cli.completion import complete
from lightning_prune.cli.demo_config import write_demo_config
from lightning_prune.cli.help import PROGRAM, describe_all, describe_command, describe_trainer


def main() -> None:
    """Run ``fit``, ``prune``, ``report`` or another subcommand with a config's model and data."""
    command, *rest = sys.argv[1:] or [""]
    if command == "completion":
        _answer(complete(rest))
    if command == "--version":
        _answer(f"{PROGRAM} {__version__}")
    if not command or {command, *rest} & {"-h", "--help", "--help.trainer"}:
        _show_help(command, rest)
    if command == "demo":
        command, rest = "fit", ["--config", _prepare_demo(), *rest]
        sys.argv[1:] = [command, *rest]
    if not command.startswith("-") and command not in MODELS:
        known = [*MODELS, *OTHERS]
        guess = suggest(command, known) or ";"
        _refuse(f"need a command, got '{command}'{guess} It can be: {', '.join(known)}")
    from lightning_prune.cli.command import run

    run(command if command in MODELS else None)


def _prepare_demo() -> str:
    try:
        return write_demo_config()
    except OSError as error:
        _refuse(str(error))


def _show_help(command: str, rest: list[str]) -> NoReturn:
    if "--help.trainer" in rest:
        _answer(describe_trainer())
    if command in MODELS:
        _answer(describe_command(command))
    _answer(describe_all(), code=0 if command else 2)


def _answer(text: str, code: int = 0) -> NoReturn:
    sys.stdout.write(f"{text.rstrip()}\n")
    sys.exit(code)


def _refuse(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)
