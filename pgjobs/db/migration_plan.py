"""The migrations of this code, and the steps from the applied versions to a target. Sends nothing to the server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import sha256
from typing import Literal

from pgjobs import checks
from pgjobs.db import statements
from pgjobs.errors import InvalidMigration, SchemaTooNew, shown

Direction = Literal["up", "down"]


@dataclass(frozen=True, slots=True)
class Step:
    """One migration, applied or to be applied, in one direction."""

    version: int
    name: str
    direction: Direction
    sql: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.direction} {self.version:04} {self.name}"


@cache
def versions() -> dict[int, str]:
    """The name of every migration of this code by its version, 1 to n."""
    files = sorted((statements.ROOT / "migrations").glob("*.sql"))
    return {int(match[1]): match[2] for file in files if (match := re.fullmatch(r"(\d{4})_(\w+)", file.stem))}


def digest(version: int) -> str:
    """The digest of a migration's SQL, as recorded in the table `migration`; comments and white space do not count."""
    up = statements.templates(_path(version))["up"]
    code = " ".join(re.sub(r"^\s*--.*$", "", up, flags=re.MULTILINE).split())
    return sha256(code.encode()).hexdigest()


def _path(version: int) -> str:
    return f"migrations/{version:04}_{versions()[version]}.sql"


def plan(schema: str, applied: Sequence[int], direction: Direction, target: int | None) -> list[Step]:
    """All steps from the applied versions to the target; by default to the newest version, or down to none."""
    unknown = set(applied) - set(versions())
    if unknown:
        raise SchemaTooNew(f"schema {schema!r} has version {max(unknown)}, this code knows only {max(versions())}")
    if direction == "down":
        return [_step(schema, version, "down") for version in reversed(applied) if version > (target or 0)]
    goal = max(versions()) if target is None else target
    if max(applied, default=0) > goal:
        raise InvalidMigration(
            f"schema {schema!r} is at version {max(applied)} already, above target={goal}: "
            "to take steps back say direction='down'"
        )
    return [_step(schema, version, "up") for version in versions() if version <= goal and version not in applied]


def _step(schema: str, version: int, direction: Direction) -> Step:
    sql = statements.load(_path(version), schema)[direction]
    return Step(version, versions()[version], direction, sql.decode())


def most_steps(direction: Direction, target: int | None, max_steps: int | None) -> int:
    """How many steps one call may take: down without a target is a single step."""
    if max_steps is not None:
        return max_steps
    return 1 if direction == "down" and target is None else len(versions())


def check_request(direction: object, target: object, max_steps: object, dry_run: object) -> None:
    """Raise InvalidMigration for arguments of `migrate` that are not valid."""
    if not isinstance(direction, str) or direction not in ("up", "down"):
        raise InvalidMigration(f"direction is 'up' or 'down', not {shown(direction)}")
    check_version("target", target)
    if max_steps is not None:
        checks.check_number("max_steps", max_steps, 0, error=InvalidMigration)
    checks.check_bool("dry_run", dry_run, error=InvalidMigration)


def check_version(name: str, version: object) -> None:
    if version is None and name == "target":
        return
    if not isinstance(version, int) or isinstance(version, bool):
        raise InvalidMigration(f"{name} is the number of a version, 0 to {max(versions())}, not {shown(version)}")
    if version != 0 and version not in versions():
        raise InvalidMigration(f"{name}: there is no version {shown(version)}: this code knows 0 to {max(versions())}")
