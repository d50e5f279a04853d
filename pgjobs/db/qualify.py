"""Makes a statement mean the same under any search_path, so that no other role can make it run its code.

In `a = b` the operator `=` is a name like that of a function, and Postgres looks it up in all schemas of the session's
search_path. It takes the operator whose argument types fit best, even before its own in pg_catalog. A role that may
create operators in one of these schemas could therefore define an `=` that calls a function of its own, and a worker
would run that function with the worker's rights. Writing `a OPERATOR(pg_catalog.=) b` prevents this, but is hard to
read. So the files of sql/ are written in ordinary SQL, and this module rewrites them when they are loaded:

| written         | sent                             |
|-----------------|----------------------------------|
| `a = b`         | `a OPERATOR(pg_catalog.=) b`     |
| `a::text`       | `a::pg_catalog.text`             |

Three things cannot be rewritten, and raise UnsafeStatement: a function without a schema; `a IN (...)`, `BETWEEN`,
`LIKE` and the like, for which Postgres looks up an operator that cannot be qualified; and an expression whose meaning
would change, since all operators in the form OPERATOR(...) have the same precedence: `a = b + c` needs parentheses.
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


# The first words of statements without expressions, and of those with expressions. The body of a DO sets its own
# search_path.
_WITHOUT_EXPRESSIONS = _words(
    "BEGIN COMMIT ROLLBACK SAVEPOINT RELEASE SET RESET CLOSE UNLISTEN DISCARD COPY REINDEX VACUUM DROP DO GRANT REVOKE"
)
_WITH_EXPRESSIONS = _words("SELECT WITH INSERT UPDATE DELETE CREATE EXPLAIN CALL")
_FIRST_OF_A_PART = _words("AND CASE FROM NOT ON ORDER PG_CATALOG")  # for texts that are only a part of a statement

_SCHEMAS = _words("pg_catalog pgjobs")
_KEYWORD_TYPES = _words("bigint boolean integer interval smallint")  # the grammar resolves these in pg_catalog
# Words before a parenthesis that are not a function, or a function that the grammar resolves in pg_catalog.
_BEFORE_PARENTHESIS = _words(
    """ALL AND ANY ARRAY AS BY COALESCE CONFLICT ELSE EXISTS EXTRACT FILTER FROM GREATEST HAVING JOIN KEY LATERAL LEAST
    LIMIT MATERIALIZED NOT ON OR OVER SELECT SET THEN UNION VALUES WHEN WHERE"""
)
# After any other word, a string literal is a constant of that type, as in DATE '2000-01-01'.
_BEFORE_TEXT = _BEFORE_PARENTHESIS | _words("DEFAULT DISTINCT INTERVAL RETURNING ZONE")
# Keywords that are an operand or end one; after any other keyword an operand is expected.
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
_PRECEDENCE = {"^": 5, "*": 4, "/": 4, "%%": 4, "+": 3, "-": 3}
_PRECEDENCE |= dict.fromkeys(("<>", "!=", "<=", ">=", "<", ">", "="), 1)
_OTHERS = 2  # the precedence of all other operators, and of OPERATOR(...)
_NO_OPERATOR = 9


class UnsafeStatement(ValueError):
    """A statement that would mean something else under another search_path."""


class _Token(NamedTuple):
    sort: str
    text: str
    upper: str


_NONE = _Token("", "", "")


@dataclass(slots=True)
class _Level:
    """The state of one level of nesting: between parentheses, brackets, or CASE and END."""

    assigns: bool = False  # in the SET list of an UPDATE
    target: bool = False  # the next = is an assignment
    names: bool = False  # a list of column names, where types are not allowed
    precedence: int = _NO_OPERATOR  # of the last operator in the current expression


def qualify(sql: str, where: str) -> str:
    """Qualify one or several statements, or a part of one.

    `where` is the file and the statement, for the text of an UnsafeStatement.
    """
    return "".join(_Qualifier(where).qualified(sql))


def _is_name(token: _Token) -> bool:
    return token.sort == "word" and not token.text.isupper()


class _Qualifier:
    """Goes through the tokens once, and remembers the last three and the levels of nesting."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._begin()

    def _begin(self) -> None:
        """Reset the state at the beginning of a statement."""
        self._plain: bool | None = None  # whether the statement has no expressions; None before its first token
        self._levels = [_Level()]
        self._last = self._before = self._before_that = _NONE  # tokens
        self._sign = False  # whether the last token is the sign of a number

    def qualified(self, sql: str) -> Iterator[str]:
        at, sort = 0, ""
        while sort != "end":
            match = _TOKEN.match(sql, at)
            if match is None:
                raise self._unsafe(
                    f"{sql[at:].split(None, 1)[0]!r}, which is an unknown token",
                    "something else, or extend pgjobs/db/qualify.py",
                )
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
        if first.upper in _WITHOUT_EXPRESSIONS:
            return True
        if first.sort == "word" and first.upper not in _WITH_EXPRESSIONS | _FIRST_OF_A_PART:
            raise self._unsafe(
                f"a statement that begins with {first.text}", "another one, or extend pgjobs/db/qualify.py"
            )
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
        """Whether an operand must follow, so that * means all columns and - is a sign."""
        last = self._last
        if last.sort == "word":
            return last.text.isupper() and last.upper not in _OPERANDS
        return last.sort in ("operator", "") or last.text in ("(", "[", ",", ":", ".")

    def _operator(self, token: _Token) -> str:
        level, text = self._levels[-1], token.text
        if level.target and text == "=":
            level.target = False
            level.precedence = _NO_OPERATOR
            return text
        if self._operand_expected:
            if text not in ("*", "-"):
                raise self._unsafe(f"{text} without a left side", "a function")
            self._sign = text == "-"
            return text  # all columns; or the sign of a number, which the grammar makes part of the constant
        precedence = _PRECEDENCE.get(text, _OTHERS)
        if precedence > level.precedence:
            raise self._unsafe(f"{text} after an operator of lower precedence", "parentheses around its operands")
        level.precedence = precedence
        return f"OPERATOR(pg_catalog.{text})"

    def _word(self, token: _Token) -> str:
        if self._last.sort == "cast":
            known = token.text in _KEYWORD_TYPES or token.text in _SCHEMAS
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
        """A name that begins with pg_ is a table and must follow pg_catalog, unless it qualifies a column."""
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
            level.precedence = _NO_OPERATOR
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
                level.precedence = _NO_OPERATOR
                level.target = level.assigns

    def _end_level(self) -> None:
        if len(self._levels) == 1:
            raise self._unsafe("a closing parenthesis or END too many", "balanced parentheses, and END for each CASE")
        self._levels.pop()

    def _opens_names(self) -> bool:
        """Whether the parenthesis that opens here encloses a list of column names. Refuses a function without a schema
        before it."""
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
