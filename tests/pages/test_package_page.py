"""The page of the package, which is made out of the README."""

import re

import pytest

pytest.importorskip("hatchling", reason="needs hatchling, which builds the package")

from docs.package_page import PackagePage, convert_links
from tests.commands import ROOT

REPOSITORY = "https://repository.example/lightning_prune"
README = (ROOT / "README.md").read_text()
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
RELATIVE = re.compile(r"\]\((?!https://)[^)]*\)")


def test_links_and_pictures_lead_to_the_repository():
    text = "[a](docs/a.md#b) [c](#c)\n\n![d](docs/images/d.svg)\n\n[e](https://e.example)\n"
    assert convert_links(text, REPOSITORY) == (
        f"[a]({REPOSITORY}/blob/main/docs/a.md#b) [c]({REPOSITORY}#c)\n\n"
        f"![d]({REPOSITORY}/raw/main/docs/images/d.svg)\n\n[e](https://e.example)\n"
    )


def test_without_a_repository_links_are_words_and_pictures_are_left_out():
    text = "[a](docs/a.md) and [c](#c)\n\n![d](docs/images/d.svg)\n\n[e](https://e.example)\n"
    assert convert_links(text, "") == "a and c\n\n[e](https://e.example)\n"


@pytest.mark.parametrize("repository", ["", REPOSITORY])
def test_no_link_of_the_readme_stays_relative_and_no_code_changes(repository):
    page = convert_links(README, repository)
    assert RELATIVE.search(CODE.sub("", page)) is None
    assert CODE.findall(page) == CODE.findall(README)


@pytest.mark.parametrize("repository", ["", REPOSITORY])
def test_the_links_beside_the_page_are_there_if_the_repository_is_named(repository):
    metadata = {}
    PackagePage(str(ROOT), {"repository": repository}).update(metadata)
    assert metadata["readme"]["content-type"] == "text/markdown"
    assert metadata.get("urls", {}).get("Repository", "") == repository
