"""Commands that run beside the tests, each in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 900


def run_command(
    *command: str | Path,
    folder: Path | None = None,
    codes: Collection[int] = (0,),
    environment: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and show its output if the exit code is not expected.

    Args:
        command: The program and its arguments.
        folder: The working directory; the present one by default.
        codes: The exit codes that are expected.
        environment: Variables that are set beside those of this process.
        seconds: After this time the command is killed, and the test fails.
    """
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert run.returncode in codes, run.stdout[-5000:] + run.stderr[-5000:]
    return run


def run_python(
    *arguments: str | Path,
    folder: Path = ROOT,
    codes: Collection[int] = (0,),
    environment: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Run Python in the root of the repository, or in another folder."""
    options = {"folder": folder, "codes": codes, "environment": environment, "seconds": seconds}
    return run_command(sys.executable, *arguments, **options)
