"""Each fault that was seen from outside has a test that holds it mended, and says in a sentence what it was."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import tests

Found = dict[str, dict[str, bool]]
ROOT = Path(tests.__file__).parent
FINDINGS = [
    *(f"S{number}" for number in range(1, 7)),  # security
    *(f"W{number}" for number in range(1, 18)),  # wrong or lost
    *(f"E{number}" for number in range(1, 14)),  # errors, noise, silence
]


def findings_in(node: ast.AST) -> set[str]:
    """The findings in the marks below a node: a decorator, or what a module says of all its tests."""
    return {
        str(argument.value)
        for mark in ast.walk(node)
        if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Attribute) and mark.func.attr == "finding"
        for argument in mark.args
        if isinstance(argument, ast.Constant)
    }


def said(node: ast.Module | ast.FunctionDef) -> bool:
    return bool(ast.get_docstring(node))


@pytest.fixture(scope="module")
def found() -> Found:
    """By finding: its tests, or modules of them, and whether each says what the fault was."""
    by_name: Found = defaultdict(dict)
    for path in sorted(ROOT.rglob("test_*.py")):
        module = ast.parse(path.read_text("utf-8"))
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef):
                for name in set().union(*map(findings_in, node.decorator_list)):
                    by_name[name][f"{path.name}::{node.name}"] = said(node)
            elif isinstance(node, ast.Assign):
                for name in findings_in(node.value):
                    by_name[name][path.name] = said(module)
    return by_name


def test_each_finding_has_a_test(found: Found) -> None:
    assert [name for name in FINDINGS if name not in found] == []


def test_no_mark_names_a_finding_that_is_not_in_the_list(found: Found) -> None:
    assert sorted(found.keys() - set(FINDINGS)) == []


def test_each_of_these_tests_says_what_the_fault_was(found: Found) -> None:
    silent = {test for group in found.values() for test, says in group.items() if not says}
    assert sorted(silent) == []
