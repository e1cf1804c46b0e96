"""Makes the page of the package out of the README; hatchling runs it while it builds.

The page lies elsewhere than the files that the README names. If the owner has filled in the
`repository` in `pyproject.toml`, each link and picture is absolute, and `[project.urls]` is filled.
If not, links are plain words, and pictures are left out.
"""

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

BRANCH = "main"
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
PICTURE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)]+)\)\n*")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:)([^)]+)\)")


class PackagePage(MetadataHookInterface):
    """Sets the description of the package, and the links beside it."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the description and the links."""
        repository = self.config["repository"].rstrip("/")
        text = convert_links(
            (Path(self.root) / "README.md").read_text(encoding="utf-8"), repository
        )
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            metadata["urls"] = list_urls(repository)


def convert_links(text: str, repository: str) -> str:
    """Return Markdown whose relative links and pictures lead to a repository.

    Args:
        text: Markdown. Blocks of code stay as they are.
        repository: Address of the repository; if it is empty, links become plain words.
    """
    parts = CODE.split(text)
    return "".join(
        part if part.startswith("```") else convert_prose(part, repository) for part in parts
    )


def convert_prose(text: str, repository: str) -> str:
    """Return Markdown without code, with absolute links or with none."""
    if not repository:
        return LINK.sub(r"\1", PICTURE.sub("", text))

    def lead(link: re.Match[str]) -> str:
        words, target = link.groups()
        path = target if target.startswith("#") else f"/blob/{BRANCH}/{target}"
        return f"[{words}]({repository}{path})"

    pictures = PICTURE.sub(rf"![\1]({repository}/raw/{BRANCH}/\2)\n\n", text)
    return LINK.sub(lead, pictures)


def list_urls(repository: str) -> dict[str, str]:
    """Return the links of a package page, by name."""
    return {
        "Repository": repository,
        "Documentation": f"{repository}/blob/{BRANCH}/docs/index.md",
        "Changelog": f"{repository}/blob/{BRANCH}/CHANGELOG.md",
    }
