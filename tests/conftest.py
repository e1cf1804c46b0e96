import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from lightning_prune.channels.coupling import Coupling
from lightning_prune.engine import channel_selection
from tests.devices import elsewhere
from tests.processes import processes
from tests.terminal import Terminal, terminal_of_rich

pytest.register_assert_rewrite(
    "tests.callbacks.replicas",
    "tests.commands",
    "tests.engine.zero_keeping",
    "tests.recipe.atoms",
)

_COUPLINGS: dict[str, Coupling] = {}

# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start
for name in ("COLUMNS", "FORCE_COLOR"):  # tables are read as text, 80 columns wide
    os.environ.pop(name, None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let `docs/works_with.py` find in the JUnit results which case a test shows."""
    for item in items:
        for marker in item.iter_markers("works_with"):
            section, case = marker.args
            path, line, _ = item.location
            shown = {"section": section, "case": case, "order": [path, line], **marker.kwargs}
            item.user_properties.append(("works_with", json.dumps(shown)))


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """The terminal that rich writes to."""
    with terminal_of_rich() as stream:
        yield stream


@pytest.fixture(autouse=True)
def _another_default_device() -> Iterator[None]:
    """Let no call of ours depend on the default device."""
    with elsewhere():
        yield


@pytest.fixture(autouse=True)
def _no_seed_is_left() -> Iterator[None]:
    """Take away what Lightning's `seed_everything` leaves for processes that are started later."""
    yield
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        os.environ.pop(name, None)


@pytest.fixture
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace each model once in all tests: what goes together does not depend on its weights."""
    trace = channel_selection.couple

    def couple(module: torch.nn.Module, example: Any) -> Coupling:
        shapes = [(name, tensor.shape) for name, tensor in module.state_dict().items()]
        key = repr((type(module), module, shapes))
        if key not in _COUPLINGS:
            _COUPLINGS[key] = trace(module, example)
        return _COUPLINGS[key]

    monkeypatch.setattr(channel_selection, "couple", couple)


@pytest.fixture(scope="session")
def two() -> Iterator[Callable[..., list[Any]]]:
    """Run a function in two processes."""
    with processes(2) as run:
        yield run


@pytest.fixture(scope="session")
def four() -> Iterator[Callable[..., list[Any]]]:
    """Run a function in four processes."""
    with processes(4) as run:
        yield run


@pytest.fixture
def prune_cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run the command `lightning-prune` in this process."""
    from lightning_prune import cli

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["lightning-prune", *map(str, arguments)])
        cli.main()

    return run


@pytest.fixture(scope="session")
def vectors() -> dict:
    return json.loads((Path(__file__).parent / "reference" / "vectors.json").read_text())


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the contract tests try answers of your own."""
    help = "a Python file; the contract tests try the answers in it instead of ours"
    parser.addoption("--answers", type=Path, metavar="FILE", help=help)


def pytest_configure(config: pytest.Config) -> None:
    """Import the file of `--answers`, under its own name, as a config would."""
    path = config.getoption("--answers")
    if path is not None:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        spec.loader.exec_module(module)
        _OWN_MODULES.append(path.stem)


_OWN_MODULES: list[str] = []


def answers(question: type) -> list[type]:
    """Return the classes of the package that answer a question, however deep they descend."""
    return [kind for kind in descend(question) if kind.__module__.startswith("lightning_prune.")]


def answers_under_contract(question: type) -> list[type]:
    """Return the classes of the file of `--answers` that answer a question; without it, ours."""
    if not _OWN_MODULES:
        return answers(question)
    return [kind for kind in descend(question) if kind.__module__ in _OWN_MODULES]


def descend(question: type) -> list[type]:
    """Return the concrete classes below a question, however deep."""
    found = [
        kind
        for child in question.__subclasses__()
        for kind in [*([] if child.__abstractmethods__ else [child]), *descend(child)]
    ]
    return sorted(dict.fromkeys(found), key=lambda kind: kind.__name__)
