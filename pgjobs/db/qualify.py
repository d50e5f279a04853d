"""Makes a statement mean the same under any search_path.

Postgres looks up an operator, a function or a type without a schema by the search_path of the session, and prefers one
of another schema that fits the arguments better to its own: so a role that may create operators in a schema of that
path could let a worker run its code. The files of sql/ are written as one reads them; here each operator becomes
`OPERATOR(pg_catalog.=)` and each type of a cast `pg_catalog.text`. What cannot be made safe is refused: functions
without a schema, and the forms for which Postgres looks up an operator by itself, as `IN` does for `=`.

All operators written like that bind equally strongly, from left to right: a statement that this would change is refused
too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
    (?P<space> (?: \s+ | --[^\n]* )* )
    (?: (?P<text> [eE]'(?:[^'\\]|''|\\.)*' | '(?:[^']|'')*' | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$ )
    | (?P<parameter> %\(\w+\)[sb] | \{\w+\} | \$\d+ )
    | (?P<number> \d+(?:\.\d+)? )
    | (?P<word> \w+ | "(?:[^"]|"")+" )
    | (?P<cast> :: )
    | (?P<mark> [.,;:()[\]] )
    | (?P<operator>
        ->> | -> | \#>> | \#> | \#- | @> | <@ | \?\| | \?& | \? | \|\| | && | !~\* | !~ | ~\* | ~
        | <> | != | <= | >= | < | > | = | %% | [-+*/^] )
    | (?P<end> \Z ) )
    """,
    re.VERBOSE | re.DOTALL,
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Statements without an expression, and those with some; each by its first word.
# A DO has a search_path of its own in its body.
_WITHOUT = _words(
    "BEGIN COMMIT ROLLBACK SAVEPOINT RELEASE SET RESET CLOSE UNLISTEN DISCARD COPY REINDEX DROP DO GRANT REVOKE"
)
_WITH = _words("SELECT WITH INSERT UPDATE DELETE CREATE EXPLAIN CALL")
_BEGIN_A_PART = _words("AND CASE NOT PG_CATALOG")  # of a statement

_SCHEMAS = _words("pg_catalog pgjobs")
_GRAMMAR_TYPES = _words("bigint boolean integer interval smallint")  # all others are looked up by the search_path
# Words before a parenthesis that no function can have as its name, or that the grammar gives to pg_catalog's.
_BEFORE_PARENTHESIS = _words(
    """ALL AND ANY ARRAY AS BY COALESCE CONFLICT ELSE EXISTS EXTRACT FILTER FROM GREATEST HAVING JOIN KEY LATERAL LEAST
    LIMIT MATERIALIZED NOT ON OR OVER SELECT SET THEN UNION VALUES WHEN WHERE"""
)
# Words behind which a text is not the constant of a type.
_BEFORE_TEXT = _BEFORE_PARENTHESIS | _words("DEFAULT DISTINCT INTERVAL RETURNING ZONE")
# Words with which an expression ends; behind every other word of the grammar one may begin.
_OPERANDS = _words("NULL TRUE FALSE END ANY ALL ARRAY EXISTS COALESCE EXTRACT GREATEST LEAST INTERVAL")
_REFUSED = {
    "IN": "= ANY ('{a,b}'), = ANY (SELECT ...), or NOT (a = ANY (...))",
    "BETWEEN": "a >= b AND a <= c",
    "LIKE": "pg_catalog.starts_with(a, b) or ~",
    "ILIKE": "~*",
    "SIMILAR": "~",
    "NULLIF": "CASE WHEN a <> b THEN a END",
    "CAST": "a::type",
    "NATURAL": "JOIN ... ON",
}
_STRENGTH = {"^": 5, "*": 4, "/": 4, "%%": 4, "+": 3, "-": 3}
_STRENGTH |= dict.fromkeys(("<>", "!=", "<=", ">=", "<", ">", "="), 1)
_OTHERS = 2  # the strength of all other operators, and of those with a schema
_STRONGEST = 9


class UnsafeStatement(ValueError):
    """A statement that would mean something else under another search_path."""


class _Token(NamedTuple):
    sort: str
    text: str
    upper: str


_NONE = _Token("", "", "")


@dataclass(slots=True)
class _Level:
    """What stands between two parentheses, brackets, or CASE and END."""

    assigns: bool = False  # inside the SET of an UPDATE
    target: bool = False  # the next = assigns
    names: bool = False  # of columns, without their types
    strength: int = _STRONGEST  # of the last operator of the expression


def qualify(sql: str, where: str) -> str:
    """The text of one or several statements, or of a part of one, with everything in it named in full.

    `where` tells file and statement, for the UnsafeStatement that is raised if that cannot be done.
    """
    return "".join(_Qualifier(where).qualified(sql))


def _is_name(token: _Token) -> bool:
    return token.sort == "word" and not token.text.isupper()


class _Qualifier:
    def __init__(self, where: str) -> None:
        self._where = where
        self._begin()

    def _begin(self) -> None:
        """A statement begins."""
        self._plain: bool | None = None  # whether it has no expressions
        self._levels = [_Level()]
        self._last = self._before = self._before_that = _NONE  # tokens
        self._sign = False  # whether the last one is the sign of a number

    def qualified(self, sql: str) -> Iterator[str]:
        at, sort = 0, ""
        while sort != "end":
            match = _TOKEN.match(sql, at)
            if match is None:
                raise self._unsafe(f"{sql[at:].split(None, 1)[0]!r}, which is not known", "or teach pgjobs/qualify.py")
            at, sort = match.end(), match.lastgroup or ""
            text = match[sort]
            yield match["space"]
            yield self._next(_Token(sort, text, text.upper()))

    def _next(self, token: _Token) -> str:
        if token.text in (";", ""):
            self._check_table(token.text)
            self._begin()
            return token.text
        if self._plain is None:
            self._plain = self._is_plain(token)
        text = token.text if self._plain else self._in_expression(token)
        self._before_that, self._before, self._last = self._before, self._last, token
        return text

    def _is_plain(self, first: _Token) -> bool:
        if first.upper in _WITHOUT:
            return True
        if first.sort == "word" and first.upper not in _WITH and first.upper not in _BEGIN_A_PART:
            raise self._unsafe(f"a statement that begins with {first.text}", "one that pgjobs/qualify.py knows")
        return False

    def _unsafe(self, form: str, instead: str) -> UnsafeStatement:
        return UnsafeStatement(f"{self._where}: {form}: its meaning depends on the search_path; write {instead}")

    # --- one token

    def _in_expression(self, token: _Token) -> str:
        self._check_table(token.text)
        if self._last.upper == "CASE" and token.upper != "WHEN":
            raise self._unsafe("CASE a WHEN b", "CASE WHEN a = b")
        if self._sign and token.sort != "number":
            raise self._unsafe(f"- without a left side, before {token.text}", f"0 - {token.text}")
        self._sign = False
        match token.sort:
            case "operator":
                return self._operator(token)
            case "word":
                return self._word(token)
            case "mark":
                self._mark(token)
            case "text":
                self._constant(token)
        return token.text

    @property
    def _operand_expected(self) -> bool:
        """Whether an expression may begin here, so that * is every column and - a sign."""
        last = self._last
        if last.sort == "word":
            return last.text.isupper() and last.upper not in _OPERANDS
        return last.sort in ("operator", "") or last.text in ("(", "[", ",", ":", ".")

    def _operator(self, token: _Token) -> str:
        level, text = self._levels[-1], token.text
        if level.target and text == "=":
            level.target = False
            level.strength = _STRONGEST
            return text
        if self._operand_expected:
            if text not in ("*", "-"):
                raise self._unsafe(f"{text} without a left side", "a function")
            self._sign = text == "-"
            return text  # every column; or the sign of a number, which the grammar makes part of it
        strength = _STRENGTH.get(text, _OTHERS)
        if strength > level.strength:
            raise self._unsafe(f"{text} behind an operator that binds less strongly", "parentheses around its operands")
        level.strength = strength
        return f"OPERATOR(pg_catalog.{text})"

    def _word(self, token: _Token) -> str:
        if self._last.sort == "cast":
            known = token.text in _GRAMMAR_TYPES or token.text in _SCHEMAS
            return token.text if known else f"pg_catalog.{token.text}"
        if self._last.text == ".":
            return token.text
        self._check_word(token)
        if token.text.isupper():
            self._keyword(token.upper)
        return token.text

    def _check_word(self, token: _Token) -> None:
        last = self._last
        if token.upper in _REFUSED:
            raise self._unsafe(token.text, _REFUSED[token.upper])
        if last.upper == "DISTINCT" and token.upper == "FROM":
            raise self._unsafe("IS DISTINCT FROM", "(a <> b OR a IS NULL), or (a = b OR (a IS NULL AND b IS NULL))")
        if last.upper == "COLLATE" and token.text != "pg_catalog":
            raise self._unsafe(f"COLLATE {token.text}", f"COLLATE pg_catalog.{token.text}")
        if self._levels[-1].names and _is_name(last) and _is_name(token):
            raise self._unsafe(f"AS name ({last.text} {token.text})", "no column types there")

    def _check_table(self, next: str) -> None:
        """What begins with pg_ is a table of pg_catalog, unless it stands for the columns of one that was named."""
        last = self._last
        if last.text[:3] != "pg_" or last.text == "pg_catalog" or self._plain:
            return
        if self._before.text != "." != next:
            raise self._unsafe(last.text, f"pg_catalog.{last.text}")

    def _keyword(self, word: str) -> None:
        if word == "CASE":
            self._levels.append(_Level())
        elif word == "END":
            self._end_level()
        elif word not in _OPERANDS:
            level = self._levels[-1]
            level.strength = _STRONGEST
            if word == "SET":
                level.assigns = level.target = True
            elif word in ("FROM", "WHERE", "RETURNING"):
                level.assigns = level.target = False

    def _mark(self, token: _Token) -> None:
        match token.text:
            case "(":
                self._levels.append(_Level(names=self._opens_names()))
            case "[":
                self._levels.append(_Level())
            case ")" | "]":
                self._end_level()
            case "," | ":":
                level = self._levels[-1]
                level.strength = _STRONGEST
                level.target = level.assigns

    def _end_level(self) -> None:
        if len(self._levels) == 1:
            raise self._unsafe("more is closed than was opened", "balanced parentheses, and END for each CASE")
        self._levels.pop()

    def _opens_names(self) -> bool:
        """A parenthesis opens: whether the names of columns follow. What stands before it must not be a function that
        the search_path finds."""
        schema, before, name = self._before_that, self._before, self._last
        if "AS" in (before.upper, name.upper) and name.sort == "word":
            return True
        if name.sort != "word" or name.upper in _BEFORE_PARENTHESIS:
            return False
        if name.upper == "USING":
            raise self._unsafe("USING (column)", "ON a.column = b.column")
        if before.text != "." or schema.text not in _SCHEMAS:
            raise self._unsafe(f"{name.text}(...)", f"pg_catalog.{name.text}(...) or pgjobs.{name.text}(...)")
        return False

    def _constant(self, token: _Token) -> None:
        last = self._last
        if last.sort == "word" and last.upper not in _BEFORE_TEXT:
            raise self._unsafe(f"{last.text} {token.text}", f"{token.text}::{last.text}")
