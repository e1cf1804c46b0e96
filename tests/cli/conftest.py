import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str, str], Path]:
    """Write a module and `recipe.yaml` into a folder, and go there."""

    def write(name: str, module: str, config: str) -> Path:
        (tmp_path / f"{name}.py").write_text(module)
        (tmp_path / "recipe.yaml").write_text(config)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path

    return write
