"""Operators, functions, types and tables of a stranger, in a schema that comes first in the search_path.

They have the names that the statements of pgjobs use, for all pairs of the types that these have to do with. Each does
what pg_catalog's does, and writes the statement that has found it to a file of the server, which no rollback undoes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import product
from math import prod
from typing import Any

import psycopg

from pgjobs.db import statements

Conn = psycopg.Connection[Any]

# A role meets the decoys before everything; or, as in any path that does not name pg_catalog, before `public` alone:
# then Postgres takes what fits better than pg_catalog's.
PATHS = ("decoy, public, pg_catalog", "decoy, public")

# Types of columns and parameters, and what they are compared with.
_PLAIN = [
    *("text", "jsonb", "bool", "int2", "int4", "int8", "numeric", "float8", "timestamptz", "interval", "uuid", "bytea"),
    *("name", "xid", "xid8", "oid", "regclass"),
]
_ARRAYS = [
    *("text[]", "jsonb[]", "bool[]", "int2[]", "int4[]", "int8[]", "timestamptz[]", "interval[]", "uuid[]", "bytea[]"),
]
_POLYMORPHIC = ["anyelement", "anynonarray", "anyarray", "anycompatible", "anycompatiblearray"]
_CATALOG_TABLES = ["pg_class", "pg_index", "pg_namespace"]
_IMPLIED = {"=", "<>", "<", ">", "<=", ">=", "~~", "!~~"}  # by IN, BETWEEN, LIKE and others
_COMPARE = {*_IMPLIED, "~", "!~", "~*", "@>", "<@", "&&", "?", "?|", "?&"}
_MOST_SIGNATURES = 400  # of one function: where there are more, one argument is varied at a time

_AT_ONCE = 2000  # what a transaction makes: the server has not room for as many locks as there are decoys

_BEGINNING = """
CREATE SCHEMA decoy;
GRANT USAGE ON SCHEMA decoy TO PUBLIC;
CREATE SEQUENCE decoy.calls;
CREATE FUNCTION decoy.found() RETURNS pg_catalog.bool LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    context text;
BEGIN
    GET DIAGNOSTICS context = PG_CONTEXT;
    IF {wanted} THEN
        EXECUTE format('COPY (SELECT current_query()) TO %L', current_setting('data_directory') || '/decoy_'
            || (SELECT oid FROM pg_database WHERE datname = current_database()) || '_' || nextval('decoy.calls'));
    END IF;
    RETURN true;
END
$$;
"""
# The statement is one of ours, and no function of a test's has found the decoy: there are found() and the decoy alone.
_OF_PGJOBS = r"""current_query() ~ '-- name: |OPERATOR\(pg_catalog|EXECUTE pgjobs_|advisory_class\(\)'
    AND cardinality(regexp_split_to_array(context, 'PL/pgSQL function')) <= 3"""


def make_decoys(conn: Conn, *, of_pgjobs_alone: bool = False) -> None:
    """Make those of the types that every database has. `of_pgjobs_alone` writes down no statement of anybody else, and
    leaves out what would break those."""
    conn.execute("SET search_path = pg_catalog")
    _run(conn, [_BEGINNING.replace("{wanted}", _OF_PGJOBS if of_pgjobs_alone else "true")])
    # polymorphic ones would make 'a' || 1 in a test ambiguous
    types = [*_PLAIN, *_ARRAYS, *([] if of_pgjobs_alone else _POLYMORPHIC)]
    _run(conn, _operators(conn, [(a, b) for a in types for b in types], {}, passing_on=of_pgjobs_alone))
    _run(conn, _prefix_operators(types))
    _run(conn, _functions(conn, {}, passing_on=of_pgjobs_alone))
    if not of_pgjobs_alone:
        _run(conn, _types_and_tables())


def make_decoys_for(conn: Conn, schema: str, *, of_pgjobs_alone: bool = False) -> None:
    """Make those of the types of our schema."""
    query = """SELECT format('%%I.%%I', nspname, typname), format_type(typbasetype, NULL) FROM pg_type
        JOIN pg_namespace ON pg_namespace.oid = typnamespace WHERE typtype = 'd' AND nspname = %s"""
    base = {domain: _short(of) for domain, of in conn.execute(query, [schema])}
    others = [*_PLAIN, *_ARRAYS, *_POLYMORPHIC, *base]
    pairs = [(a, b) for a, b in product(others, repeat=2) if a in base or b in base]
    if of_pgjobs_alone:  # not for every test all that there could be
        pairs = [(a, b) for a, b in pairs if base.get(a, a) == base.get(b, b)]
    _run(conn, _operators(conn, pairs, base, passing_on=of_pgjobs_alone))
    _run(conn, _functions(conn, base, passing_on=of_pgjobs_alone))
    if not of_pgjobs_alone:
        tables = conn.execute("SELECT tablename FROM pg_tables WHERE schemaname = %s", [schema])
        _run(conn, (made for (name,) in tables for made in _table(f'"{schema}"', name)))


def add_for(conn: Conn, schema: str) -> None:
    """Make those of our schema where they can be made, and are not there."""
    query = """SELECT NOT EXISTS (
            SELECT FROM pg_operator JOIN pg_type ON pg_type.oid = oprleft
            WHERE oprnamespace = pg_namespace.oid AND typnamespace = to_regnamespace(%s))
        FROM pg_namespace, pg_roles WHERE nspname = 'decoy' AND rolname = current_user AND rolsuper"""
    conn.execute("SET search_path = pg_catalog")
    if conn.execute(query, [f'"{schema}"']).fetchone() == (True,):
        make_decoys_for(conn, schema, of_pgjobs_alone=True)


def calls(conn: Conn) -> int:
    """How many there were."""
    row = conn.execute("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM decoy.calls").fetchone()
    assert row is not None
    return int(row[0])


def found(conn: Conn, after: int = 0) -> list[str]:
    """The statements that have come upon a decoy, behind so many others."""
    query = """SELECT pg_read_file('decoy_' || (SELECT oid FROM pg_database WHERE datname = current_database())
        || '_' || number) FROM generate_series(%s::bigint + 1, %s) AS number"""
    return [text for (text,) in conn.execute(query, [after, calls(conn)])]


def operators() -> set[str]:
    """The symbol of every operator in our statements and migrations."""
    code = re.sub(r"--.*|'(?:[^']|'')*'", "", _migrations())
    written = set(re.findall(r"(?<=[ (])[-+*/<>=~!@#^&|?]{1,3}(?= )", code)) - {"=>"}
    return (
        _IMPLIED | written | {symbol.replace("%%", "%") for symbol in _in_statements(r"OPERATOR\(pg_catalog\.(.+?)\)")}
    )


def functions() -> set[str]:
    """The name of every function of pg_catalog in our statements, and whatever looks like one in the migrations."""
    return _in_statements(r"\bpg_catalog\.(\w+)\(") | set(re.findall(r"\b([a-z]\w+)\(", _migrations()))


def _migrations() -> str:
    return "\n".join(path.read_text() for path in (statements.ROOT / "migrations").glob("*.sql"))


def _in_statements(pattern: str) -> set[str]:
    paths = [path.name for path in statements.ROOT.glob("*.sql") if path.name != "parts.sql"]
    texts = [text.decode() for path in paths for text in statements.load(path, "pgjobs").values()]
    return {name for text in texts for name in re.findall(pattern, text)}


def _run(conn: Conn, made: Iterable[str]) -> None:
    conn.execute("SET check_function_bodies = off")
    every = list(made)
    for start in range(0, len(every), _AT_ONCE):
        conn.execute(";\n".join(every[start : start + _AT_ONCE]).encode())


def _short(type: str) -> str:
    """As it stands in the lists above."""
    names = {
        "timestamp with time zone": "timestamptz", "integer": "int4", "bigint": "int8", "smallint": "int2",
        "boolean": "bool", "double precision": "float8",
    }  # fmt: skip
    name, array, _ = type.partition("[]")
    return names.get(name, name) + array


def _operators(conn: Conn, pairs: list[tuple[str, str]], base: dict[str, str], *, passing_on: bool) -> Iterator[str]:
    """Where they need not pass on to pg_catalog's, one function does for many."""
    query = """SELECT oprname, format_type(oprleft, NULL), format_type(oprright, NULL), format_type(oprresult, NULL)
        FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprleft <> 0"""
    known = {(name, _short(a), _short(b)): _short(result) for name, a, b, result in conn.execute(query)}
    made = set()
    for (number, symbol), (left, right) in product(enumerate(sorted(operators())), pairs):
        result = known.get((symbol, base.get(left, left), base.get(right, right)))
        if passing_on and result is None and "any" not in left + right:
            continue
        if result is None or result.startswith("any"):
            result = "bool" if symbol in _COMPARE else "text" if symbol in ("->>", "#>>") else left
        of = str(number) if passing_on else result.replace('"', "")
        function = f'decoy."operator {of}"'
        if (function, left, right) not in made:
            made.add((function, left, right))
            answer = f"$1 OPERATOR(pg_catalog.{symbol}) $2" if passing_on else "NULL"
            yield (
                f"CREATE FUNCTION {function}({left}, {right}) RETURNS {result} LANGUAGE plpgsql AS "
                f"$$ BEGIN PERFORM decoy.found(); RETURN {answer}; END $$"
            )
        yield f"CREATE OPERATOR decoy.{symbol} (LEFTARG = {left}, RIGHTARG = {right}, FUNCTION = {function})"


def _prefix_operators(types: list[str]) -> Iterator[str]:
    for number, (symbol, type) in enumerate(product("-+~@", types)):
        yield (
            f"CREATE FUNCTION decoy.prefix_{number}({type}) RETURNS {type} LANGUAGE plpgsql AS "
            f"$$ BEGIN PERFORM decoy.found(); RETURN OPERATOR(pg_catalog.{symbol}) $1; END $$"
        )
        yield f"CREATE OPERATOR decoy.{symbol} (RIGHTARG = {type}, FUNCTION = decoy.prefix_{number})"


def _functions(conn: Conn, base: dict[str, str], *, passing_on: bool) -> Iterator[str]:
    """With the arguments of pg_catalog's, and with those that fit better: domains, and types for the polymorphic."""
    query = """SELECT proname, prokind, proretset, format_type(prorettype, NULL),
            ARRAY(SELECT format_type(type, NULL) FROM unnest(proargtypes) AS type)
        FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proname = ANY (%s)"""
    made = set()
    for name, kind, is_set, returned, arguments in conn.execute(query, [sorted(functions())]):
        result = _short(returned)
        passes_on = kind == "f" and not is_set and not result.startswith("any")
        if "internal" in (result, *arguments) or (passing_on and not passes_on):
            continue
        for given in _signatures([_short(each) for each in arguments], base):
            if (name, given) in made:
                continue
            made.add((name, given))
            values = ", ".join(f"${place + 1}" for place in range(len(given)))
            returns = "RETURN" if is_set or result == "void" else f"RETURN pg_catalog.{name}({values})"
            types = f"SETOF {result}" if is_set else result
            if result.startswith("any"):
                types, returns = "text", "RETURN NULL"
            yield (
                f'CREATE FUNCTION decoy."{name}"({", ".join(given)}) RETURNS {types} LANGUAGE plpgsql AS '
                f"$$ BEGIN PERFORM decoy.found(); {returns}; END $$"
            )


def _signatures(arguments: list[str], base: dict[str, str]) -> Iterator[tuple[str, ...]]:
    """All that fit; only those with one of our types, if there are any."""
    choices = []
    for argument in arguments:
        match argument:
            case "anyarray" | "anycompatiblearray":
                choices.append([*_ARRAYS, *(domain for domain, of in base.items() if of.endswith("[]"))])
            case '"any"' | "anyelement" | "anynonarray" | "anycompatible":
                choices.append([*_PLAIN, *_ARRAYS, *base])
            case _:
                choices.append([argument, *(domain for domain, of in base.items() if of == argument)])
    if prod(map(len, choices)) <= _MOST_SIGNATURES:
        every: Iterable[tuple[str, ...]] = product(*choices)
    else:
        first = tuple(choice[0] for choice in choices)
        places = range(len(choices))
        every = ((*first[:place], each, *first[place + 1 :]) for place in places for each in choices[place])
    yield from (given for given in every if not base or any(each in base for each in given))


def _types_and_tables() -> Iterator[str]:
    for name in [*_PLAIN, "timestamp", "json"]:
        yield f"CREATE DOMAIN decoy.{name} AS pg_catalog.{name} CHECK (decoy.found())"
    for name in _CATALOG_TABLES:
        yield from _table("pg_catalog", name)


def _table(schema: str, name: str) -> Iterator[str]:
    yield f"CREATE VIEW decoy.{name} AS SELECT * FROM {schema}.{name} WHERE decoy.found()"
    yield f"GRANT SELECT ON decoy.{name} TO PUBLIC"
