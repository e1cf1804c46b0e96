"""Lets a CUDA build of torch load and run on a machine without the CUDA libraries.

    python torch_without_cuda.py SITE_PACKAGES

The wheels of torch for Linux on PyPI link some gigabytes of CUDA libraries. This script makes an
empty stand-in for each library that is missing, beside the libraries of torch. The stand-in has the
same name, symbols and symbol versions; each function returns "no device". Only the CUDA runtime has
to be installed: torch registers its kernels there when it is loaded. Needs gcc and the binutils.
"""

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

NO_DEVICE = 100  # the code of an error both for the driver and for the runtime
SHARED = "libcuda_stand_in.so"  # holds the symbols without a version
ELSEWHERE = re.compile(r"_?Py|_Z")  # symbols of the interpreter, and of C++


def output(*command: str | Path) -> str:
    """Return what a command prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def present(site: Path) -> set[str]:
    """Return the names of the libraries that the loader finds, on the machine or in wheels."""
    loaded = re.findall(r"^\s*(\S+) \(", output("/sbin/ldconfig", "-p"), re.MULTILINE)
    wheels = [*(site / "torch" / "lib").glob("*.so*"), *(site / "nvidia").glob("**/lib/*.so*")]
    return {*loaded, *(path.name for path in wheels)}


def needed(library: Path) -> set[str]:
    """Return the names of the libraries that a library links."""
    return set(re.findall(r"NEEDED.*\[(.*)\]", output("readelf", "-d", library)))


def versions(library: Path) -> dict[str, str]:
    """Return the library that has each symbol version that a library asks for."""
    found, holder = {}, ""
    for line in output("readelf", "--wide", "-V", library).splitlines():
        if match := re.search(r"File: (\S+)", line):
            holder = match[1]
        elif match := re.search(r"Name: (\S+)", line):
            found[match[1]] = holder
    return found


def symbols(library: Path) -> tuple[set[str], set[str]]:
    """Return the symbols that a library defines, and the versioned ones that it asks for."""
    defined, asked = set(), set()
    for line in output("nm", "-D", "--with-symbol-versions", library).splitlines():
        kind, name = line.split()[-2:]
        if kind == "U":
            asked.add(name)
        else:
            defined.add(name.partition("@")[0])
    return defined, asked


def build(path: Path, functions: set[str], version: str = "", *links: Path) -> None:
    """Compile a library of functions that return the code for 'no device'."""
    source, script = path.with_suffix(".c"), path.with_suffix(".map")
    source.write_text("".join(f"int {name}(void){{return {NO_DEVICE};}}\n" for name in functions))
    script.write_text(f"{version} {{ global: *; }};\n")
    command = ["gcc", "-w", "-shared", "-fPIC", source, "-o", path, f"-Wl,-soname,{path.name}"]
    if version:
        command.append(f"-Wl,--version-script={script}")
    output(*command, "-Wl,--no-as-needed", *links, "-Wl,-rpath,$ORIGIN")
    source.unlink()
    script.unlink()


def stand_in(site: Path) -> list[str]:
    """Make the stand-ins, and return their names."""
    folder = site / "torch" / "lib"
    libraries = [*folder.glob("*.so*"), *(site / "torch").glob("_C*.so")]
    missing = sorted(set().union(*map(needed, libraries)) - present(site))
    holders = {version: name for path in libraries for version, name in versions(path).items()}
    defined, asked = (set().union(*each) for each in zip(*map(symbols, libraries), strict=True))
    functions: dict[str, set[str]] = defaultdict(set)
    for symbol in asked:
        name, _, version = symbol.partition("@")
        if version or not (name in defined or ELSEWHERE.match(name)):
            functions[version.lstrip("@")].add(name)
    shared = folder / SHARED
    build(shared, functions[""])
    for name in missing:
        (version,) = [each for each, holder in holders.items() if holder == name] or [""]
        build(folder / name, functions[version] if version else set(), version, shared)
    return missing


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print("stand-ins for", *stand_in(Path(sys.argv[1])))
