"""The names that a statement leaves to the search_path are written in full, or the statement is refused."""

from __future__ import annotations

import re

import pytest

from pgjobs.db import statements
from pgjobs.db.qualify import UnsafeStatement, qualify

pytestmark = [pytest.mark.finding("S1"), pytest.mark.finding("S2")]


def short(sql: str) -> str:
    """What becomes of it, with `<=>` for OPERATOR(pg_catalog.=) and `^` for pg_catalog."""
    return re.sub(r"OPERATOR\(pg_catalog\.([^)]+)\)", r"<\1>", qualify(sql, "here")).replace("pg_catalog.", "^")


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("SELECT a = b", "SELECT a <=> b"),
        ("SELECT a->>'b' = c", "SELECT a<->>>'b' <=> c"),
        ("SELECT a || b || 'x'", "SELECT a <||> b <||> 'x'"),
        ("SELECT (a, b) > (%(c)s, %(d)b)", "SELECT (a, b) <>> (%(c)s, %(d)b)"),
        ("SELECT a = ANY ('{b,c}')", "SELECT a <=> ANY ('{b,c}')"),
        ("SELECT a <> ALL (b)", "SELECT a <<>> ALL (b)"),
        ("SELECT a %% 2", "SELECT a <%%> 2"),
        ("SELECT a ? 'b', a ?& b", "SELECT a <?> 'b', a <?&> b"),
        ("SELECT a::text, a::text[], a::bigint, a::pg_catalog.xid", "SELECT a::^text, a::^text[], a::bigint, a::^xid"),
        ("SELECT a::text::xid8", "SELECT a::^text::^xid8"),
    ],
)
def test_operators_and_types_are_named_in_full(written: str, sent: str) -> None:
    assert short(written) == sent


@pytest.mark.parametrize(
    "written",
    [
        "SELECT *, a.*, pg_catalog.count(*) FROM a",
        "SELECT -1, (-1), ARRAY[-1]",
        "SELECT a[2:3]",
        "SELECT '{a = b}', 'it''s = ', \"a = b\", E'\\' = ', $$a = b$$",
        "SELECT 1 -- a = b, and more'",
        "UPDATE a SET b = 1, c = CASE WHEN d THEN 1 END, (e, f) = (1, 2) FROM g",
        "INSERT INTO pgjobs.a (b) VALUES (1) ON CONFLICT (b) DO UPDATE SET b = 2, c = EXCLUDED.c",
        "SET LOCAL search_path = a",
        "BEGIN; SET LOCAL lock_timeout = '1s'; COMMIT",
        "COPY a (b) FROM STDIN",
        "DELETE FROM a USING b",
        "SELECT interval '1 day', COALESCE(a, b), GREATEST(a, b), EXTRACT(epoch FROM a), EXISTS (SELECT)",
        "SELECT DISTINCT ON (a) a FROM b AS c (d, e) WHERE f IS NOT TRUE",
        "WITH a AS MATERIALIZED (SELECT), b AS (SELECT) SELECT FROM a LEFT JOIN (SELECT) AS c ON true",
        "SELECT pg_class.oid FROM pg_catalog.pg_class JOIN pg_catalog.pg_index ON pg_index.oid IS NULL",
        "{part}; SELECT CASE WHEN {part} THEN a END",
    ],
)
def test_what_leaves_nothing_to_the_search_path_stays_as_it_is(written: str) -> None:
    assert qualify(written, "here") == written


def test_an_assignment_ends_where_the_expression_begins() -> None:
    update = "UPDATE a SET b = c = d, e = (f = g) WHERE h = i RETURNING j = k"
    assert short(update) == "UPDATE a SET b = c <=> d, e = (f <=> g) WHERE h <=> i RETURNING j <=> k"


@pytest.mark.parametrize(
    ("written", "form", "instead"),
    [
        ("SELECT a IN (1, 2)", "IN", "= ANY"),
        ("SELECT a not in (SELECT 1)", "in", "NOT (a = ANY"),
        ("SELECT a BETWEEN 1 AND 2", "BETWEEN", ">="),
        ("SELECT a LIKE 'b'", "LIKE", "starts_with"),
        ("SELECT a ILIKE 'b'", "ILIKE", "~*"),
        ("SELECT a SIMILAR TO 'b'", "SIMILAR", "~"),
        ("SELECT a IS DISTINCT FROM b", "IS DISTINCT FROM", "IS NULL"),
        ("SELECT a IS NOT DISTINCT FROM b", "IS DISTINCT FROM", "IS NULL"),
        ("SELECT NULLIF(a, b)", "NULLIF", "CASE WHEN"),
        ("SELECT CASE a WHEN 1 THEN 2 END", "CASE a WHEN b", "CASE WHEN a = b"),
        ("SELECT CASE (a) WHEN 1 THEN 2 END", "CASE a WHEN b", "CASE WHEN a = b"),
        ("SELECT FROM a JOIN b USING (c)", "USING (column)", "ON a.column"),
        ("SELECT FROM a NATURAL JOIN b", "NATURAL", "ON"),
        ("SELECT CAST(a AS text)", "CAST", "a::type"),
        ("SELECT lower(a)", "lower(...)", "pg_catalog.lower(...)"),
        ("SELECT public.lower(a)", "lower(...)", "pg_catalog.lower(...)"),
        ("SELECT a COLLATE \"C\"", 'COLLATE "C"', 'COLLATE pg_catalog."C"'),
        ("SELECT jsonb '{}'", "jsonb '{}'", "'{}'::jsonb"),
        ("SELECT JSONB '{}'", "JSONB '{}'", "'{}'::JSONB"),
        ("SELECT FROM pg_class", "pg_class", "pg_catalog.pg_class"),
        ("SELECT FROM pg_class AS a; COMMIT", "pg_class", "pg_catalog.pg_class"),
        ("SELECT FROM ROWS FROM (pg_catalog.f() AS (b text)) AS a", "AS name (b text)", "no column types"),
        ("SELECT FROM pg_catalog.f() AS a (b text)", "AS name (b text)", "no column types"),
        ("SELECT ~ a", "~ without a left side", "a function"),
        ("SELECT -a", "- without a left side", "0 - a"),
        ("SELECT (b, -%(a)s)", "- without a left side", "0 - %(a)s"),
        ("SELECT a < b + 1", "+ after an operator of lower precedence", "parentheses"),
        ("SELECT a = b || c", "|| after an operator of lower precedence", "parentheses"),
        ("SELECT a + b * c", "* after an operator of lower precedence", "parentheses"),
        ("MERGE INTO a", "begins with MERGE", "qualify.py"),
        ("SELECT a @ b", "'@', which is an unknown token", "qualify.py"),
        ("SELECT a)", "a closing parenthesis or END too many", "balanced"),
    ],
)  # fmt: skip
def test_what_cannot_be_named_in_full_is_refused_with_what_to_write(written: str, form: str, instead: str) -> None:
    with pytest.raises(UnsafeStatement) as refused:
        qualify(written, "sql/execution.sql, statement claim")
    message = str(refused.value)
    assert message.startswith("sql/execution.sql, statement claim: ")
    assert form in message
    assert instead in message.partition("write ")[2]


def test_operators_that_bind_less_strongly_come_behind() -> None:
    assert short("SELECT a * b + c || d = e, a < (b + c)") == "SELECT a <*> b <+> c <||> d <=> e, a <<> (b <+> c)"


def test_nothing_in_the_statements_is_left_to_the_search_path() -> None:
    """All that Postgres could look up stands behind a schema, a type of the grammar, or an alias of the statement."""
    for path in statements.ROOT.glob("*.sql"):
        if path.name not in ("parts.sql", "db.sql"):
            for name, text in statements.load(path.name, "pgjobs").items():
                code = re.sub(rb"--.*|'(?:[^']|'')*'", b"", text)
                assert not re.search(rb"::(?!pg_catalog\.|bigint|boolean|integer|interval|smallint)", code), name
                assert not re.search(rb"\b(?:FROM|JOIN|INTO|UPDATE) pg_\w+(?!\.)\b(?! *\.)", code), name
