"""Makes empty CUDA libraries, so that the torch that PyPI has for Linux can be imported without 4 GB of CUDA packages.

    python tools/python/stub_cuda.py site-packages/torch/lib FOLDER
    LD_LIBRARY_PATH=FOLDER python -c "import torch"

Every library that torch needs and the system lacks becomes a library of that name, with a function for every symbol that
torch expects of it; the function returns an error of CUDA (35: the driver is too old). Everything on the CPU works,
`torch.cuda.is_available()` is false. Needs `cc` and binutils.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path


def lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def symbols(library: Path, kind: str) -> set[tuple[str, str]]:
    """Names and versions of dynamic symbols, `--defined-only` or `--undefined-only`."""
    names = (line.split()[-1].partition("@") for line in lines("nm", "-D", kind, str(library)))
    return {(name, version.lstrip("@")) for name, _, version in names}


def required_versions(library: Path) -> dict[str, set[str]]:
    """Versions of symbols that a library requires, by the library that has them."""
    required: dict[str, set[str]] = {}
    name = ""
    for line in lines("objdump", "-p", str(library)):
        if match := re.match(r"\s+required from (\S+):", line):
            name = match.group(1)
        elif match := re.match(r"\s+0x[0-9a-f]+ 0x\d+ \d+ (\S+)", line):
            required.setdefault(name, set()).add(match.group(1))
    return required


def build(path: Path, functions: dict[str, list[str]]) -> None:
    """Makes a library of functions, by their version; the version of some is empty."""
    names = sorted(name for group in functions.values() for name in group)
    source = "".join(f"long {name}(void) {{ return 35; }}\n" for name in names)
    nodes = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(group))} }};\n"
        for version, group in functions.items()
        if version
    )
    with tempfile.NamedTemporaryFile("w", suffix=".map") as script:
        script.write(nodes)
        script.flush()
        command = ["cc", "-w", "-x", "c", "-", "-shared", "-fPIC", "-fno-builtin", f"-Wl,-soname,{path.name}"]
        command += [f"-Wl,--version-script={script.name}"] if nodes else []
        subprocess.run([*command, "-o", str(path)], input=source, text=True, check=True)


def main(torch_lib: Path, folder: Path) -> None:
    ours = sorted(torch_lib.glob("*.so*"))
    missing: set[str] = set()
    system: set[Path] = set()
    for library in ours:
        for line in lines("ldd", str(library)):
            name, _, place = line.strip().partition(" => ")
            if "not found" in place and not (torch_lib / name).exists():
                missing.add(name)
            elif place.startswith("/"):
                system.add(Path(place.split()[0]))
    defined = {name for library in {*ours, *system} for name, _ in symbols(library, "--defined-only")}
    undefined = set().union(*(symbols(library, "--undefined-only") for library in ours))
    undefined = {(name, version) for name, version in undefined if name not in defined and NEEDED.match(name)}
    versions: dict[str, set[str]] = {}
    for library in ours:
        for name, required in required_versions(library).items():
            versions.setdefault(name, set()).update(required)
    folder.mkdir(parents=True, exist_ok=True)
    for index, library in enumerate(sorted(missing)):
        # Symbols without a version may be anywhere.
        wanted = versions.get(library, set()) | ({""} if index == 0 else set())
        build(folder / library, {version: [name for name, of in undefined if of == version] for version in wanted})


# Not the interpreter's symbols, nor those that the C compiler and C++ make.
NEEDED = re.compile(r"(?!_?Py|_ITM_|__(?!cuda)|_Z|_Jv)")

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
