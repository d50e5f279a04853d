"""JSON for people: the same JSON, indented; and secrets that come back where they were shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgjobs.dashboard.json_text import pretty, with_secrets
from pgjobs.secret_fields import HIDDEN

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(TREES)
def test_it_is_the_same_json(tree: Any) -> None:
    text, cut = pretty(json.dumps(tree, ensure_ascii=False))
    assert json.loads(text) == tree
    assert cut == 0


@given(TREES)
def test_it_looks_as_json_usually_does(tree: Any) -> None:
    assert pretty(json.dumps(tree))[0] == json.dumps(tree, indent=2)


@pytest.mark.parametrize("number", ["1.50000000000000000000001", "1" * 5000, "-0.0", "1e400"])
def test_numbers_stay_as_they_are(number: str) -> None:
    assert pretty(f'{{"n": {number}}}')[0] == f'{{\n  "n": {number}\n}}'


def test_characters_that_turn_the_text_round_are_seen() -> None:
    assert pretty('{"a\u202e": "\u2066b\x9b"}')[0] == '{\n  "a\\u202e": "\\u2066b\\u009b"\n}'


def test_a_long_text_is_cut_and_a_deep_one_does_not_grow() -> None:
    text, cut = pretty(json.dumps(["x" * 50] * 100), most=1000)
    assert len(text) == 1000
    assert cut > 4000
    deep = "[" * 5000 + "]" * 5000
    assert len(pretty(deep, most=10**9)[0]) < 5000 * 200


def test_a_secret_comes_back_where_it_was_shown_and_nowhere_else() -> None:
    original = {"user": "ada", "password": "x", "keys": [{"key": "k1"}, {"key": "k2"}]}
    shown = {"user": "ada", "password": HIDDEN, "keys": [{"key": HIDDEN}, {"key": HIDDEN}]}
    assert with_secrets(shown, shown, original) == original
    given = {"user": HIDDEN, "password": "new", "keys": [{"key": HIDDEN}], "more": HIDDEN}
    assert with_secrets(given, shown, original) == {
        "user": HIDDEN, "password": "new", "keys": [{"key": "k1"}], "more": HIDDEN,
    }  # fmt: skip
