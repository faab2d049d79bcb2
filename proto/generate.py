"""Generate Python stubs from `proto/loraplex/**.proto` into `proto/gen`; `--check` fails when they are stale."""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO_ROOT = Path(__file__).resolve().parent
GENERATED = PROTO_ROOT / "gen"


def generate(destination: Path) -> None:
    """Run protoc with the python, grpc and mypy plugins; `destination` receives the package tree."""
    sources = sorted(str(path) for path in (PROTO_ROOT / "loraplex").rglob("*.proto"))
    outputs = [f"--{plugin}_out={destination}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO_ROOT}", *outputs, *sources]
    # protoc looks for the mypy plugins on PATH; they lie beside the interpreter, whether or not it is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(command, check=True, env={**os.environ, "PATH": path})
    for package in {Path(source).parent.relative_to(PROTO_ROOT) for source in sources}:
        for folder in (package, *package.parents):
            if folder != Path("."):
                (destination / folder / "__init__.py").touch()
    (destination / "loraplex" / "py.typed").touch()


def stale_files(fresh: Path) -> list[str]:
    """Names of files that differ between a fresh generation and what is checked in."""
    names = {
        str(p.relative_to(root)) for root in (fresh, GENERATED) for p in root.rglob("*.py*") if p.is_file()
    }
    names = {name for name in names if "__pycache__" not in name}
    return sorted(
        name
        for name in names
        if not ((fresh / name).is_file() and (GENERATED / name).is_file())
        or not filecmp.cmp(fresh / name, GENERATED / name, shallow=False)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 when the stubs are stale"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        if arguments.check:
            stale = stale_files(fresh)
            for name in stale:
                sys.stderr.write(f"stale: proto/gen/{name}; run: python proto/generate.py\n")
            return 1 if stale else 0
        shutil.rmtree(GENERATED, ignore_errors=True)
        shutil.copytree(fresh, GENERATED)
    return 0


if __name__ == "__main__":
    sys.exit(main())
