"""Bytes: of each tensor that torch allocates, and of the whole process."""

import contextlib
import ctypes
import gc
import itertools
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hides the start and the stop of each profile

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MIB = 2**20
M_MMAP_THRESHOLD = -3  # a constant of glibc


@dataclass(frozen=True, kw_only=True)
class Recording:
    """All allocations and releases on a kind of device, with the named spans of time.

    Args:
        events: Time and bytes of each; bytes are negative for a release.
        spans: Begin and end of each span, by name.
    """

    events: Sequence[tuple[float, int]]
    spans: dict[str, tuple[float, float]]

    def count_before(self, span: str) -> int:
        """Return the bytes in use when a span begins."""
        return sum(size for at, size in self.events if at < self.spans[span][0])

    def count_after(self, span: str) -> int:
        """Return the bytes in use when a span ends."""
        return sum(size for at, size in self.events if at < self.spans[span][1])

    def find_peak(self, span: str) -> int:
        """Return the most bytes in use at any time of a span."""
        sizes = [size for _, size in self._during(span)]
        return max(itertools.accumulate(sizes, initial=self.count_before(span)))

    def find_excess(self, span: str) -> int:
        """Return the peak of a span, less the bytes in use before or after it, if more."""
        return self.find_peak(span) - max(self.count_before(span), self.count_after(span))

    def count_allocations(self, span: str, at_least: int) -> int:
        """Return the number of allocations in a span that have so many bytes or more."""
        return sum(size >= at_least for _, size in self._during(span))

    def _during(self, span: str) -> Iterator[tuple[float, int]]:
        begin, end = self.spans[span]
        return ((at, size) for at, size in self.events if begin <= at < end)


def record(run: Callable[[torch.device], object], device: torch.device) -> Recording:
    """Run a function, and return all allocations and the spans that it names with `span`.

    Args:
        run: Takes the device; every tensor that it uses must be new.
        device: The device; allocations elsewhere are left out.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    gc.collect()
    with profile(activities=activities, profile_memory=True) as profiler:
        run(device)
        gc.collect()
    trace = _export_events(profiler)
    return Recording(
        events=sorted(
            (event["ts"], event["args"]["Bytes"])
            for event in trace
            if event["name"] == "[memory]"
            and (event["args"]["Device Type"] == 0) == (device.type == "cpu")
        ),
        spans={
            event["name"]: (event["ts"], event["ts"] + event["dur"])
            for event in trace
            if event.get("cat") == "user_annotation"
        },
    )


def _export_events(profiler: profile) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        return json.loads(file.read_text())["traceEvents"]


@contextlib.contextmanager
def span(name: str) -> Iterator[None]:
    """Name a span of time; garbage is released before the begin and before the end."""
    gc.collect()
    with record_function(name):
        yield
        gc.collect()


def count_process_bytes(kind: str) -> int:
    """Return the memory of this process in bytes: now (``"VmRSS"``), or the peak (``"VmHWM"``)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{kind}:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def reset_process_peak(large: int) -> None:
    """Give free memory back to Linux, and let the peak of this process begin at the memory now.

    Args:
        large: Bytes from which the allocator gives memory back at once. Unless this is set, the
            threshold grows with each release.
    """
    gc.collect()
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, large)
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
