import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# A busy machine is no reason to fail.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def vectors() -> dict:
    return json.loads((Path(__file__).parent / "reference" / "vectors.json").read_text())


def answers(question: type) -> list[type]:
    """Return the classes of the package that answer a question, however deep they descend."""

    def descend(base: type) -> Iterator[type]:
        for child in base.__subclasses__():
            if child.__module__.startswith("lightning_prune.") and not child.__abstractmethods__:
                yield child
            yield from descend(child)

    return sorted(descend(question), key=lambda child: child.__name__)
