"""A hook of MkDocs: executes the notebooks, and adds them to the site as pages."""

import re
import tempfile
from pathlib import PurePosixPath
from typing import Literal

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

_SECONDS = 300  # for a cell
_LINK = re.compile(r"\]\((\w+)\.ipynb\)")
_TITLE = re.compile(r"^# .*$", re.MULTILINE)
_commands: list[str] = []


def on_startup(*, command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Note the command: ``mkdocs serve`` shows the notebooks without results, but at once."""
    _commands[:] = [command]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, with the results of all cells.

    Raises:
        nbclient.exceptions.CellExecutionError: If a cell fails.
    """
    for file in [each for each in files if each.src_uri.endswith(".ipynb")]:
        path = PurePosixPath(file.src_uri)
        page, pictures = _convert(file, path.stem)
        files.append(File.generated(config, str(path.with_suffix(".md")), content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, str(path.parent / name), content=content))
    return files


def _convert(file: File, stem: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and the pictures by name."""
    notebook = nbformat.read(file.abs_src_path, as_version=4)
    if _commands != ["serve"]:
        with tempfile.TemporaryDirectory() as folder:
            place = {"metadata": {"path": folder}}
            NotebookClient(notebook, timeout=_SECONDS, resources=place).execute()
        _drop_messages(notebook)
    names = {"unique_key": stem, "output_files_dir": f"{stem}_files"}
    page, resources = MarkdownExporter().from_notebook_node(notebook, resources=names)
    page = _LINK.sub(r"](\1.md)", page)
    download = f"[Download this notebook]({stem}.ipynb), or read the results of the last build:"
    page = _TITLE.sub(lambda title: f"{title[0]}\n\n{download}", page, count=1)
    return page, resources["outputs"]


def _drop_messages(notebook: nbformat.NotebookNode) -> None:
    """Leave out what cells wrote to stderr: hints about this machine."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
