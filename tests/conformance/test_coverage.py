"""No line of the conformance list is forgotten: each has a test, or stands in the table of what comes later."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tests
from tests.conformance.later import CANNOT, KNOWN, LATER

ROOT = Path(tests.__file__).parent


def is_mark(node: ast.AST) -> bool:
    """Whether this is a call of `pytest.mark.conformance`."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "conformance"
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "mark"
    )


def marks(tree: ast.AST) -> Iterator[ast.Call]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_mark(node))


def numbers_in(tree: ast.AST) -> Iterator[int]:
    for mark in marks(tree):
        for number in mark.args:
            assert isinstance(number, ast.Constant), f"line {mark.lineno}: numbers are written out"
            assert isinstance(number.value, int), f"line {mark.lineno}: numbers are ints"
            yield number.value


@cache
def test_files() -> dict[str, ast.Module]:
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in sorted(ROOT.rglob("test_*.py"))}


test_files.__test__ = False  # type: ignore[attr-defined]

IN_THE_TABLE = Counter(number for numbers in (*LATER.values(), CANNOT) for number in numbers)


@pytest.fixture(scope="module")
def tested() -> frozenset[int]:
    return frozenset(number for tree in test_files().values() for number in numbers_in(tree))


def test_every_line_of_the_list_has_a_test_or_a_place_in_the_table(tested: frozenset[int]) -> None:
    assert sorted(KNOWN - tested - IN_THE_TABLE.keys()) == []


def test_a_line_that_has_a_test_is_struck_from_the_table(tested: frozenset[int]) -> None:
    assert sorted(tested & IN_THE_TABLE.keys()) == []


def test_no_test_and_no_table_names_a_line_that_is_not_in_the_list(tested: frozenset[int]) -> None:
    assert len(KNOWN) == 233
    assert sorted((tested | IN_THE_TABLE.keys()) - KNOWN) == []


def test_the_table_names_each_line_once_and_gives_few_up() -> None:
    assert [number for number, times in IN_THE_TABLE.items() if times > 1] == []
    assert len(CANNOT) < 10
    assert all(len(reason) > 20 for reason in CANNOT.values())


def test_every_mark_stands_on_a_test_and_carries_a_number() -> None:
    astray = []
    for name, tree in test_files().items():
        on_tests = {
            mark
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
            for decorator in node.decorator_list
            for mark in marks(decorator)
        }
        astray += [f"{name}:{mark.lineno}" for mark in marks(tree) if mark not in on_tests or not mark.args]
    assert astray == []
