"""A few processes that talk by gloo over the loopback device, for distributed tests."""

import io
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

SECONDS = 180


class Processes:
    """Runs a function in each of them at the same time and returns what each returned."""

    def __init__(self, size: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        self._ends, self._children = [], []
        for rank in range(size):
            end, childs_end = context.Pipe()
            child = context.Process(target=_serve, args=(childs_end, rank, size, port), daemon=True)
            child.start()
            childs_end.close()
            self._ends.append(end)
            self._children.append(child)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return the results by rank; an error in any of them is an error here."""
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
            self.close()
            raise AssertionError("\n".join(failures))
        return results

    def close(self) -> None:
        """End them."""
        for child in self._children:
            child.kill()
            child.join()


def _serve(end: Any, rank: int, size: int, port: int) -> None:
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
        TORCHELASTIC_RUN_ID="test",  # by which Lightning knows that the processes are there
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    while True:
        try:
            function, args = end.recv()
        except EOFError:
            return
        try:
            answer = io.BytesIO()
            torch.save(function(*args), answer)
            end.send((True, answer.getvalue()))
        except BaseException:
            end.send((False, traceback.format_exc()))


@contextmanager
def processes(size: int) -> Iterator[Callable[..., list[Any]]]:
    """Yield what runs a function in ``size`` processes; they start when first used."""
    pool: Processes | None = None

    def run(function: Callable[..., Any], *args: Any) -> list[Any]:
        nonlocal pool
        pool = pool or Processes(size)
        try:
            return pool.run(function, *args)
        except AssertionError:
            pool = None
            raise

    try:
        yield run
    finally:
        if pool is not None:
            pool.close()
