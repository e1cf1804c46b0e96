"""Links the dependencies of the installed wheel into its environment, and nothing else.

    python link_dependencies.py SITE_PACKAGES

SITE_PACKAGES holds the wheel. All dependencies come from the environment of this Python. There, an
import of any other package fails. Optional dependencies (extras) are left out.
"""

import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def find_needed(package: Distribution, extras: set[str]) -> Iterator[tuple[str, set[str]]]:
    """Yield the name and the extras of each dependency that holds on this machine."""
    for line in package.requires or ():
        need = Requirement(line)
        chosen = [{"extra": extra} for extra in extras or {""}]
        if need.marker is None or any(map(need.marker.evaluate, chosen)):
            yield canonicalize_name(need.name), need.extras


def collect(package: Distribution) -> dict[str, Distribution]:
    """Return all dependencies by name, direct and indirect."""
    found: dict[str, Distribution] = {}
    waiting = list(find_needed(package, set()))
    while waiting:
        name, extras = waiting.pop()
        if name not in found or extras:
            found[name] = distribution(name)
            needed = find_needed(found[name], extras)
            waiting += [each for each in needed if each[0] not in found]
    return found


def link(package: Distribution, site: Path) -> None:
    """Link the files and folders of a package that lie directly in its environment."""
    for name in {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}:
        if not (site / name).exists():
            (site / name).symlink_to(Path(str(package.locate_file(name))))


def main() -> None:
    """Link the dependencies of the wheel."""
    site = Path(sys.argv[1])
    (info,) = site.glob("lightning_prune-*.dist-info")
    for package in collect(Distribution.at(info)).values():
        link(package, site)


if __name__ == "__main__":
    main()
