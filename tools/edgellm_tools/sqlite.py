"""Questions to one SQLite database that the user named, and nothing but questions.

The file is the setting `sqlite.path`, the environment variable EDGELLM_SQLITE, or `Database(path)`; never the
model's choice. `mode=ro` alone would still let ATTACH and VACUUM INTO write other files, so an authorizer denies
whatever is not on a short list, before a statement runs.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Generator
from urllib.parse import quote

import edgellm
from edgellm_tools.sqlite_functions import MAX_LENGTH, install

MAX_ROWS = 100
MAX_RESULT_CHARACTERS = 6_000
MAX_CELL_CHARACTERS = 200
MAX_QUERY_S = 8.0
MAX_TABLES = 100
PROGRESS_STEPS = 200

_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: MAX_LENGTH,
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 100,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 20,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READING_PRAGMAS = {
    "foreign_key_list", "index_info", "index_list", "index_xinfo", "table_info", "table_list", "table_xinfo",
}  # fmt: skip
# Full-text tables ask these of their own file; given a value they would write, so only without one.
_PLAIN_PRAGMAS = {"data_version", "encoding", "page_count", "page_size", "schema_version", "user_version"}
_SCHEMA_COLUMNS = {"type", "name", "tbl_name", "rootpage", "sql"}
_ALLOWED_FUNCTIONS = """
    abs char coalesce format glob hex ifnull iif instr last_insert_rowid length like likelihood likely lower ltrim
    max min nullif octet_length printf quote replace round rtrim sign soundex sqlite_version substr substring
    total_changes changes trim typeof unhex unicode unlikely upper zeroblob random randomblob concat concat_ws
    avg count group_concat string_agg sum total median percentile
    row_number rank dense_rank percent_rank cume_dist ntile lag lead first_value last_value nth_value
    date time datetime julianday unixepoch strftime timediff current_date current_time current_timestamp
    acos acosh asin asinh atan atan2 atanh ceil ceiling cos cosh degrees exp floor ln log log10 log2 mod pi pow
    power radians sin sinh sqrt tan tanh trunc
    json json_array json_array_length json_each json_error_position json_extract json_group_array
    json_group_object json_insert json_object json_patch json_pretty json_quote json_remove json_replace json_set
    json_tree json_type json_valid -> ->>
    match bm25 snippet highlight offsets matchinfo
"""
_FUNCTIONS = frozenset(_ALLOWED_FUNCTIONS.split())


class Database:
    """Tools over one database: `runtime.chat(tools=[Database("house.db")])`. No path: the user's setting."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else os.fspath(path)

    @edgellm.tool(
        permission="auto",
        timeout_s=12,
        max_result_tokens=2048,
        examples=[("How many rows has the table log?", {"sql": "SELECT count(*) FROM log"})],
    )
    def sqlite_query(self, sql: str, *, call: edgellm.ToolContext) -> str:
        """Runs one SELECT on the database.

        Args:
            sql: See sqlite_tables for the columns.
        """
        with self._open(call) as connection:
            return _query(connection, sql)

    @edgellm.tool(permission="auto", timeout_s=12, max_result_tokens=2048)
    def sqlite_tables(self, *, call: edgellm.ToolContext) -> str:
        """Lists the database's tables and their columns."""
        with self._open(call) as connection:
            return _tables(connection)

    @contextlib.contextmanager
    def _open(self, call: edgellm.ToolContext) -> Generator[sqlite3.Connection]:
        named = self._path or call.setting("sqlite.path") or os.environ.get("EDGELLM_SQLITE")
        if not named:
            raise edgellm.ToolError(
                "No database is open to the SQLite tools.",
                hint="The user sets one: EDGELLM_SQLITE=/path/file.db, or sqlite.path in the configuration.",
            )
        path = os.path.realpath(os.path.expanduser(str(named)))
        if not os.path.isfile(path):
            raise edgellm.ToolError(f"There is no database file {path}.", hint="The user sets it.")
        until = time.monotonic() + min(MAX_QUERY_S, max(0.1, call.remaining_s() - 1))
        is_late = False

        def is_over() -> bool:
            nonlocal is_late
            is_late = time.monotonic() > until
            return is_late or call.cancelled()

        try:
            connection = sqlite3.connect(
                f"file:{quote(path)}?mode=ro", uri=True, isolation_level=None, timeout=2
            )
            with contextlib.closing(connection):
                _harden(connection)
                connection.set_progress_handler(is_over, PROGRESS_STEPS)
                yield connection
        except (sqlite3.Error, sqlite3.Warning) as error:
            call.check()
            if is_late:
                raise edgellm.ToolError(
                    "The query took too long and was stopped.", hint="Ask for less: add WHERE or LIMIT."
                ) from error
            raise _as_tool_error(error) from error


def _harden(connection: sqlite3.Connection) -> None:
    for category, limit in _LIMITS.items():
        connection.setlimit(category, limit)
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA cell_size_check = ON")
    # Not trusted_schema = OFF: it would refuse views that use LIKE, ours below. A schema can do no more than a
    # query: the authorizer looks into views and triggers as well.
    install(connection)
    connection.text_factory = _decoded
    connection.set_authorizer(_authorize)


def _authorize(
    action: int, first: str | None, second: str | None, database: str | None, trigger: str | None
) -> int:
    """Asked by SQLite for every access while a statement is prepared."""
    match action:
        case sqlite3.SQLITE_SELECT | sqlite3.SQLITE_READ | sqlite3.SQLITE_RECURSIVE:
            is_allowed = True
        case sqlite3.SQLITE_FUNCTION:
            is_allowed = (second or "").lower() in _FUNCTIONS
        case sqlite3.SQLITE_PRAGMA:
            pragma = (first or "").lower()
            is_allowed = pragma in _READING_PRAGMAS or (pragma in _PLAIN_PRAGMAS and second is None)
        case sqlite3.SQLITE_UPDATE:
            # Asked when a virtual table (full text, pragma_table_info) declares its columns to the connection.
            # A statement that says so itself is refused without writable_schema, which cannot be switched on.
            is_allowed = first == "sqlite_master" and second in _SCHEMA_COLUMNS and trigger is None
        case _:
            is_allowed = False
    return sqlite3.SQLITE_OK if is_allowed else sqlite3.SQLITE_DENY


def _decoded(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _as_tool_error(error: Exception) -> edgellm.ToolError:
    told = str(error)
    if (
        "not authorized" in told
        or "authorization denied" in told
        or "prohibited" in told
        or "readonly" in told
    ):
        return edgellm.ToolError("The database is open for reading only.", hint="Write one SELECT statement.")
    if "one statement at a time" in told:
        return edgellm.ToolError("Only one statement can be run.", hint="Write one SELECT statement.")
    hint = "sqlite_tables shows the tables and columns." if told.startswith("no such") else ""
    return edgellm.ToolError(f"SQLite: {told}.", hint=hint)


def _query(connection: sqlite3.Connection, sql: str) -> str:
    try:
        cursor = connection.execute(sql)
    except (ValueError, UnicodeError) as error:
        raise edgellm.ToolError("The statement holds characters that SQLite cannot read.") from error
    if cursor.description is None:
        raise edgellm.ToolError(
            "The statement is empty or gives no rows.", hint="Write one SELECT statement."
        )
    lines = [" | ".join(_cell(column[0]) for column in cursor.description)]
    left = MAX_RESULT_CHARACTERS - len(lines[0])
    count, is_cut = 0, False
    for row in cursor:
        line = " | ".join(map(_cell, row))
        left -= len(line) + 1
        if count >= MAX_ROWS or (left < 0 and count > 0):
            is_cut = True
            break
        lines.append(line[:MAX_RESULT_CHARACTERS])
        count += 1
    lines.append(f"[first {count} rows; for more use LIMIT and OFFSET]" if is_cut else f"[{count} rows]")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        return f"<blob, {len(value)} bytes>"
    text = f"{value:.15g}" if isinstance(value, float) else str(value)
    # A row is a line: what is in a cell must not look like another row.
    text = text.replace("\r", "\\r").replace("\n", "\\n")
    return (
        text
        if len(text) <= MAX_CELL_CHARACTERS
        else f"{text[:MAX_CELL_CHARACTERS]}... ({len(text)} characters)"
    )


def _tables(connection: sqlite3.Connection) -> str:
    found = connection.execute(
        "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') "
        "AND substr(name, 1, 7) <> 'sqlite_' ORDER BY name"
    ).fetchall()
    lines: list[str] = []
    for name, kind in found[:MAX_TABLES]:
        try:
            columns = connection.execute("SELECT name, type FROM pragma_table_info(?)", (name,)).fetchall()
            text = ", ".join(f"{_cell(column)} {_cell(declared)}".rstrip() for column, declared in columns)
        except sqlite3.OperationalError:
            # A view over a table that is gone, or a virtual table whose module is not here.
            text = "unreadable"
        lines.append(f"{'view ' if kind == 'view' else ''}{_cell(name)}({text})")
    if len(found) > MAX_TABLES:
        lines.append(f"[{len(found) - MAX_TABLES} more not shown]")
    return "\n".join(lines) or "[no tables]"


_database = Database()
sqlite_query = _database.sqlite_query
sqlite_tables = _database.sqlite_tables
