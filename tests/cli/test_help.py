"""Help, version and completion, which are answered without an import of torch."""

import inspect
import shutil

import pytest

from lightning_prune import PruningCallback, __version__
from lightning_prune.callbacks.namespace import PACKAGES
from lightning_prune.cli.commands import LIGHTNINGS, MODELS, OURS, PRUNING
from lightning_prune.cli.trainer import PruneTrainer
from tests.commands import run_command, run_python

Trainer = PACKAGES[0].Trainer
NO_OPTIONS = {"self", "model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders"}

WITHOUT_TORCH = """
import sys
from contextlib import suppress
from lightning_prune.cli import main
for line in LINES:
    sys.argv = ["lightning-prune", *line.split()]
    with suppress(SystemExit):
        main()
print(*{"torch", "lightning", "numpy", "jsonargparse"} & set(sys.modules), sep="")
"""


@pytest.fixture
def answer(prune_cli, capsys):
    """Return what a command line prints, and how it exits."""

    def read(*arguments, code=0):
        with pytest.raises(SystemExit) as end:
            prune_cli(*arguments)
        assert end.value.code == code
        printed = capsys.readouterr()
        return printed.out + printed.err

    return read


def names(function):
    return [name for name in inspect.signature(function).parameters if name not in NO_OPTIONS]


@pytest.mark.parametrize("command", MODELS)
def test_the_help_of_a_command_shows_own_options_first_on_a_screen(answer, command):
    printed = answer(command, "--help")
    lines = printed.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 80
    own = printed[: printed.index("--config FILE    ")]
    for name in names(getattr(Trainer if command in LIGHTNINGS else PruneTrainer, command)):
        assert f"  --{name} " in own
    assert "--help.trainer" in printed
    assert "--trainer.max_epochs" not in printed
    assert ("PruningCallback" in printed) == (command in PRUNING)


def test_the_help_of_fit_shows_what_pruning_takes(answer):
    printed = answer("fit", "-h")
    for name in names(PruningCallback):
        assert f"  --pruning.{name}" in printed


def test_the_help_shows_words_and_defaults(answer):
    assert "--mode {max,min} " in answer("search", "--help")
    printed = answer("export", "--help")
    assert "--format {onnx,executorch,sparse}\n" in printed
    assert "(default: fp32)" in printed
    assert "(default: 16)" in printed  # a constant of another file


def test_the_help_of_the_trainer_shows_every_argument(answer):
    printed = answer("fit", "--help.trainer")
    for name in names(Trainer):
        assert f"  --trainer.{name}" in printed


def test_the_help_lists_every_command(answer):
    printed = answer("--help")
    for command, summary in MODELS.items():
        assert f"  {command} ".ljust(15) + summary in printed
    assert answer(code=2) == printed


def test_the_commands_are_those_of_the_trainer():
    ours = {name for name, value in vars(PruneTrainer).items() if inspect.isfunction(value)}
    assert set(OURS) == ours


def test_an_unknown_command_is_guessed(answer):
    assert "got 'shrnk'; did you mean 'shrink'? It can be: fit, " in answer("shrnk", code=2)


def test_the_version_is_printed(answer):
    assert answer("--version") == f"lightning-prune {__version__}\n"
    printed = run_python("-m", "lightning_prune", "--version").stdout
    assert printed == f"lightning-prune {__version__}\n"


def test_help_version_and_completion_import_neither_torch_nor_lightning(tmp_path):
    lines = ["--help", "--version", "search --help", "fit --help.trainer", "completion", "fitt"]
    script = tmp_path / "answers.py"
    script.write_text(WITHOUT_TORCH.replace("LINES", repr(lines)))
    assert run_python(script).stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["s"], ["sensitivity", "search", "shrink"]),
        (["search", "--mode", ""], ["max", "min"]),
        (["search", "--mode", "="], ["max", "min"]),  # bash
        (["search", "--mode", "=", "mi"], ["min"]),
        (["search", "--mode=mi"], ["--mode=min"]),  # zsh
        (["fit", "--pruning.schedule", "C"], ["CosineSchedule"]),
        (["fit", "--pruning.keep_zeros", "t"], ["true"]),
        (["fit", "--print_config", "--pruning.sp"], ["--pruning.sparsity"]),
        (["report", "--trainer.max_e"], ["--trainer.max_epochs"]),
        (["fit", "--config", ""], []),  # a file
        (["unknown", "--"], []),
    ],
)
def test_the_tab_key_completes_commands_options_and_words(answer, words, expected):
    assert answer("completion", "words", *words).split() == expected


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_reads_the_script(shell, answer, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(answer("completion"))
    line = "complete() { :; }; emulate sh; " if shell == "zsh" else ""  # as bashcompinit does
    line += ". ./script; lightning-prune() { printf '%s\n' \"$@\"; }; "
    line += "COMP_WORDS=(lightning-prune fit --pru); COMP_CWORD=2; _lightning_prune; "
    run = run_command(shell, "-c", f"{line} echo ${{COMPREPLY[@]}}", folder=tmp_path)
    assert run.stdout == "completion words fit --pru\n"
