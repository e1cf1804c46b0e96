"""Processes that talk by gloo over the loopback device, and scripts in a process of their own."""

import contextlib
import io
import multiprocessing
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed

SECONDS = 180  # the longest wait for an answer
ROOT = Path(__file__).resolve().parent.parent.parent

Run = Callable[..., list[Any]]


class Processes:
    """Processes that run the same function at the same time.

    Args:
        size: The number of processes.
    """

    def __init__(self, size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._ends, self._children = [], []
        for rank in range(size):
            end, far_end = context.Pipe()
            child = context.Process(target=_serve, args=(far_end, rank, size, port), daemon=True)
            child.start()
            far_end.close()
            self._ends.append(end)
            self._children.append(child)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return the result of each rank.

        Raises:
            RuntimeError: If the function raised in a process, or if a process did not answer.
        """
        for end in self._ends:
            end.send((function, args))
        failures, results = [], []
        for rank, end in enumerate(self._ends):
            if not end.poll(0 if failures else SECONDS):
                failures.append(f"rank {rank} did not answer")
                continue
            succeeded, answer = end.recv()
            if succeeded:
                results.append(torch.load(io.BytesIO(answer), weights_only=False))
            else:
                failures.append(f"rank {rank}:\n{answer}")
        if failures:
            raise RuntimeError("\n".join(failures))
        return results

    def close(self) -> None:
        """End the processes."""
        for child in self._children:
            child.kill()
            child.join()


@contextlib.contextmanager
def start_processes(size: int) -> Iterator[Run]:
    """Yield a function that runs another function in ``size`` processes."""
    processes = Processes(size)
    try:
        yield processes.run
    finally:
        processes.close()


def run_script(
    script: Path | str, *arguments: str, launcher: Sequence[str] = (), check: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a Python script from the root of the repository, and return the output.

    Args:
        script: The script, relative to the root.
        arguments: Arguments of the script.
        launcher: A command that starts Python, as ``valgrind`` does.
        check: Whether an exit code other than 0 raises an error.
    """
    command = [*launcher, sys.executable, str(ROOT / script), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=check)


def _serve(end: Any, rank: int, size: int, port: int) -> None:
    """Answer calls until the other end closes."""
    os.environ.update(
        OMP_NUM_THREADS="1",
        GLOO_SOCKET_IFNAME="lo",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        GROUP_RANK="0",
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        TORCHELASTIC_RUN_ID="none",  # tells Lightning that the processes are started already
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    with contextlib.suppress(EOFError):
        while True:
            function, args = end.recv()
            end.send(_answer(function, args))


def _answer(function: Callable[..., Any], args: Sequence[Any]) -> tuple[bool, Any]:
    """Return whether the function succeeded, and the result as bytes or the traceback."""
    try:
        answer = io.BytesIO()
        torch.save(function(*args), answer)
    except BaseException:
        return False, traceback.format_exc()
    return True, answer.getvalue()
