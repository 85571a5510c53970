"""The SQLite tools: questions are answered, nothing is written anywhere, nothing runs on for ever."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

import pytest
from edgellm_tools import sqlite as sqlite_module
from edgellm_tools.sqlite import Database

from edgellm.errors import Cancelled, ToolError
from edgellm.toolbox.context import ToolContext


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "house #1?.db"
    connection = sqlite3.connect(file)
    connection.executescript(
        """
        CREATE TABLE log(id INTEGER PRIMARY KEY, room TEXT, celsius REAL);
        INSERT INTO log(room, celsius) VALUES ('kitchen', 21.5), ('hall', 18), ('Küche', NULL);
        CREATE VIEW warm AS SELECT * FROM log WHERE celsius > 20 AND room LIKE 'k%';
        CREATE TABLE odd(a, b);
        INSERT INTO odd VALUES (x'00ff', 'two' || char(10) || 'lines'), (1e300, NULL);
        CREATE VIEW broken AS SELECT * FROM gone;
        """
    )
    connection.commit()
    connection.close()
    return file


def query(path: Path, sql: str) -> str:
    return Database(path).sqlite_query(sql, call=ToolContext())


ANSWERS = [
    ("SELECT count(*) FROM log", "count(*)\n3\n[1 rows]"),
    (
        "SELECT room, celsius FROM log ORDER BY id LIMIT 2;",
        "room | celsius\nkitchen | 21.5\nhall | 18\n[2 rows]",
    ),
    ("SELECT room FROM warm", "room\nkitchen\n[1 rows]"),
    (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<3) SELECT sum(i) s FROM n",
        "s\n6\n[1 rows]",
    ),
    ("SELECT a, b FROM odd", "a | b\n<blob, 2 bytes> | two\\nlines\n1e+300 | NULL\n[2 rows]"),
    (
        "SELECT upper(room), round(celsius) FROM log WHERE celsius BETWEEN 10 AND 19",
        "upper(room) | round(celsius)\nHALL | 18\n[1 rows]",
    ),
    ("SELECT name FROM pragma_table_info('log')", "name\nid\nroom\ncelsius\n[3 rows]"),
    ("PRAGMA user_version", "user_version\n0\n[1 rows]"),
    ("SELECT json_extract('{\"a\": [1, 2]}', '$.a[1]') AS v", "v\n2\n[1 rows]"),
    (
        "SELECT room, row_number() OVER (ORDER BY room) AS n FROM log WHERE id < 3",
        "room | n\nhall | 1\nkitchen | 2\n[2 rows]",
    ),
    ("VALUES (1), (2)", "column1\n1\n2\n[2 rows]"),
    (
        "SELECT 'aXb' LIKE 'A_b' AS a, 'a%' LIKE 'a!%' ESCAPE '!' AS b, 'ab' LIKE 'a!%' ESCAPE '!' AS c",
        "a | b | c\n1 | 1 | 0\n[1 rows]",
    ),
    (
        "SELECT 'a*[?' LIKE 'a*[?' AS a, NULL LIKE 'x' AS b, 'x' LIKE NULL AS c",
        "a | b | c\n1 | NULL | NULL\n[1 rows]",
    ),
    (
        "SELECT 'abc' GLOB 'a[^x]*' AS a, 'ABC' GLOB 'a*' AS b, '!' GLOB '[!a]' AS c",
        "a | b | c\n1 | 0 | 1\n[1 rows]",
    ),
]

REFUSED = [
    "INSERT INTO log(room) VALUES ('x')",
    "INSERT INTO log(room) VALUES ('x') RETURNING id",
    "UPDATE log SET room = 'x'",
    "UPDATE log SET room = 'x' RETURNING room",
    "DELETE FROM log",
    "REPLACE INTO log VALUES (1, 'x', 1)",
    "WITH x AS (SELECT 1) INSERT INTO log(room) SELECT 'x' FROM x",
    "UPDATE sqlite_master SET sql = ''",
    "UPDATE sqlite_schema SET sql = '', name = 'x', type = 'y', rootpage = 3, tbl_name = 'z'",
    "UPDATE sqlite_temp_master SET sql = ''",
    "UPDATE sqlite_sequence SET seq = 1",
    "DELETE FROM sqlite_master",
    "INSERT INTO sqlite_master VALUES ('table', 'x', 'x', 3, 'CREATE TABLE x(y)')",
    "DROP TABLE log",
    "CREATE TABLE t(x)",
    "CREATE TEMP TABLE t(x)",
    "CREATE TEMP TABLE t AS SELECT * FROM log",
    "CREATE TABLE IF NOT EXISTS log(x)",
    "CREATE INDEX i ON log(room)",
    "CREATE TEMP VIEW v AS SELECT 1",
    "CREATE TEMP TRIGGER t AFTER INSERT ON log BEGIN SELECT 1; END",
    "CREATE VIRTUAL TABLE temp.f USING fts5(x)",
    "ALTER TABLE log RENAME TO gol",
    "ALTER TABLE log ADD COLUMN x",
    "REINDEX",
    "ANALYZE",
    "VACUUM",
    "VACUUM INTO '{other}'",
    "VACUUM main INTO '{other}'",
    "ATTACH '{other}' AS other",
    "ATTACH DATABASE 'file:{other}?mode=rwc' AS other",
    "ATTACH ':memory:' AS m",
    "DETACH main",
    "BEGIN",
    "BEGIN IMMEDIATE",
    "COMMIT",
    "SAVEPOINT s",
    "PRAGMA writable_schema = ON",
    "PRAGMA writable_schema",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA journal_mode",
    "PRAGMA query_only = OFF",
    "PRAGMA user_version = 7",
    "PRAGMA schema_version = 7",
    "PRAGMA page_size = 512",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA temp_store_directory = '/tmp'",
    "PRAGMA data_store_directory",
    "PRAGMA mmap_size = 1000000000",
    "PRAGMA cache_size = 1000000",
    "PRAGMA hard_heap_limit = 1",
    "PRAGMA soft_heap_limit = 1",
    "PRAGMA threads = 8",
    "PRAGMA trusted_schema = ON",
    "PRAGMA foreign_keys = OFF",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA optimize",
    "PRAGMA incremental_vacuum",
    "PRAGMA integrity_check",
    "PRAGMA database_list",
    "PRAGMA function_list",
    "PRAGMA lock_status",
    "PRAGMA case_sensitive_like = ON",
    "PRAGMA main.journal_mode = WAL",
    "SELECT * FROM pragma_journal_mode",
    "SELECT * FROM pragma_database_list",
    "SELECT load_extension('/tmp/x.so')",
    "SELECT load_extension('/tmp/x.so', 'entry')",
    "SELECT LOAD_EXTENSION('/tmp/x.so')",
    "SELECT \"load_extension\"('/tmp/x.so')",
    "SELECT writefile('{other}', 'x')",
    "SELECT readfile('/etc/passwd')",
    "SELECT edit('x', 'vi')",
    "SELECT fts3_tokenizer('simple')",
    "SELECT fts3_tokenizer('simple', x'00')",
    "SELECT sqlite_compileoption_get(1)",
    "SELECT * FROM fsdir('/')",
    "SELECT 1; DELETE FROM log",
    "SELECT 1; SELECT 2",
    "EXPLAIN DELETE FROM log",
    "",
    "-- nothing",
    ";",
    "not sql",
    "SELECT * FROM missing",
    "SELECT \x00",
    "SELECT '\ud800'",
    "SELECT * FROM broken",
]  # fmt: skip


@pytest.mark.parametrize(("sql", "answer"), ANSWERS)
def test_answers(path: Path, sql: str, answer: str) -> None:
    assert query(path, sql) == answer


@pytest.mark.parametrize("sql", REFUSED, ids=lambda sql: ascii(sql)[:50])
def test_refused_and_nothing_written(path: Path, sql: str) -> None:
    before = path.read_bytes()
    other = path.parent / "other.db"
    with pytest.raises(ToolError):
        query(path, sql.replace("{other}", str(other)))
    assert path.read_bytes() == before
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "sql", ["ATTACH ':memory:' AS m", "DELETE FROM log", "PRAGMA writable_schema = 1", "VACUUM INTO '/x'"]
)
def test_the_authorizer_alone_refuses(path: Path, sql: str) -> None:
    """Not only mode=ro: on a writable connection these are refused as well."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.set_authorizer(sqlite_module._authorize)  # pyright: ignore[reportPrivateUsage]
    try:
        with pytest.raises(sqlite3.DatabaseError, match=r"not authorized|authorization denied"):
            connection.execute(sql)
    finally:
        connection.close()


BOMBS = [
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
    "SELECT sum(a.id * n.celsius) FROM log n, log a, " + ", ".join(f"log t{i}" for i in range(20)),
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n ORDER BY random()",
    "SELECT length(hex(zeroblob(500000000)))",
    "SELECT length(printf('%.*c', 500000000, 'x'))",
    "SELECT length(randomblob(900000000))",
    "SELECT replace(replace(hex(zeroblob(4000)), '0', hex(zeroblob(2000))), '0', hex(zeroblob(2000)))",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT " + "1," * 15000 + "1",
]  # fmt: skip


@pytest.mark.parametrize("sql", BOMBS, ids=lambda sql: sql[:50])
def test_bombs_end(path: Path, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "MAX_QUERY_S", 0.3)
    started = time.monotonic()
    with pytest.raises(ToolError):
        query(path, sql)
    assert time.monotonic() - started < 2


def test_patterns_with_many_wildcards_take_no_time(path: Path) -> None:
    started = time.monotonic()
    for operator, star in (("LIKE", "%"), ("GLOB", "*")):
        pattern = f"{star}0" * 30 + "1"
        assert query(path, f"SELECT hex(zeroblob(20000)) {operator} '{pattern}' AS m") == "m\n0\n[1 rows]"
    assert time.monotonic() - started < 2


FUNCTIONS = [
    ("instr('abcabc', 'ca')", "3"),
    ("instr('abc', 'x')", "0"),
    ("instr(x'0102', x'02')", "2"),
    ("instr(NULL, 'x')", "NULL"),
    ("replace('a-b-c', '-', '+')", "a+b+c"),
    ("replace('abc', '', 'x')", "abc"),
    ("'<' || trim('  a ') || '>'", "<a>"),
    ("ltrim('xxaxx', 'x')", "axx"),
    ("rtrim('xxaxx', 'yx')", "xxa"),
    ("trim('a', '')", "a"),
    ("printf('%5.2f|%-4s|%03d|%%|%x|%c', 3.14159, 'ab', 7, 255, 'xyz')", " 3.14|ab  |007|%|ff|x"),
    ("printf('%,d', 1234567)", "1,234,567"),
    ("format('%s %d', NULL, '12')", " 12"),
    ("printf(NULL)", "NULL"),
]  # fmt: skip


@pytest.mark.parametrize(("expression", "answer"), FUNCTIONS)
def test_replaced_functions_answer_as_sqlite_does(path: Path, expression: str, answer: str) -> None:
    plain = sqlite3.connect(":memory:")
    try:
        (own,) = plain.execute(f"SELECT {expression}").fetchone()
    except sqlite3.OperationalError:
        own = answer  # an older SQLite without this function
    finally:
        plain.close()
    assert str("NULL" if own is None else own) == answer
    assert query(path, f"SELECT {expression} AS v").splitlines()[1] == answer


SLOW_IN_ONE_STEP = [
    "instr(hex(zeroblob(500000)), hex(zeroblob(240000)) || '1')",
    "length(replace(hex(zeroblob(500000)), hex(zeroblob(240000)) || '1', 'x'))",
    "length(trim(hex(zeroblob(500000)), replace(hex(zeroblob(400000)), '00', '12') || '0'))",
]


@pytest.mark.parametrize("expression", SLOW_IN_ONE_STEP, ids=lambda text: text[:12])
def test_no_single_step_takes_long(path: Path, expression: str) -> None:
    started = time.monotonic()
    query(path, f"SELECT {expression}")
    assert time.monotonic() - started < 2


def test_late_is_said_as_late(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "MAX_QUERY_S", 0.1)
    with pytest.raises(ToolError, match="too long"):
        query(path, BOMBS[0])


def test_cancelling_stops_a_query(path: Path) -> None:
    context = ToolContext()
    context.cancel_event.set()
    with pytest.raises(Cancelled):
        Database(path).sqlite_query(BOMBS[0], call=context)


def test_rows_and_characters_are_capped(path: Path) -> None:
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n LIMIT 5000"
    text = query(path, numbers)
    assert text.splitlines()[100:] == ["100", "[first 100 rows; for more use LIMIT and OFFSET]"]
    wide = query(path, "SELECT hex(zeroblob(50000)) FROM log a, log b, log c, log d")
    assert len(wide) < 7_000
    assert "(100000 characters)" in wide
    columns = ", ".join(f"printf('%999s', 'x') AS c{i}" for i in range(90))
    assert len(query(path, f"SELECT {columns} FROM log")) < 13_000


def test_tables(path: Path) -> None:
    text = Database(path).sqlite_tables(call=ToolContext())
    assert text.splitlines() == [
        "view broken(unreadable)",
        "log(id INTEGER, room TEXT, celsius REAL)",
        "odd(a, b)",
        "view warm(id INTEGER, room TEXT, celsius REAL)",
    ]


def test_full_text_tables_can_be_asked(tmp_path: Path) -> None:
    file = tmp_path / "f.db"
    connection = sqlite3.connect(file)
    try:
        connection.execute("CREATE VIRTUAL TABLE docs USING fts5(body)")
    except sqlite3.OperationalError:
        connection.close()
        pytest.skip("this SQLite has no fts5")
    connection.execute("INSERT INTO docs VALUES ('milk and bread'), ('eggs')")
    connection.commit()
    connection.close()
    assert query(
        file, "SELECT snippet(docs, 0, '<', '>', '..', 5) AS s FROM docs WHERE docs MATCH 'bread'"
    ) == ("s\nmilk and <bread>\n[1 rows]")
    with pytest.raises(ToolError):
        query(file, "INSERT INTO docs(docs) VALUES ('optimize')")


@pytest.mark.parametrize("content", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_database(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.db"
    file.write_bytes(content)
    if content:
        with pytest.raises(ToolError, match="not a database"):
            query(file, "SELECT * FROM t")
    else:
        assert Database(file).sqlite_tables(call=ToolContext()) == "[no tables]"


def test_without_a_database_the_setting_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EDGELLM_SQLITE", raising=False)
    with pytest.raises(ToolError, match="EDGELLM_SQLITE"):
        sqlite_module.sqlite_query("SELECT 1", call=ToolContext())
    monkeypatch.setenv("EDGELLM_SQLITE", str(path))
    assert sqlite_module.sqlite_query("SELECT 1 AS a", call=ToolContext()) == "a\n1\n[1 rows]"
    with pytest.raises(ToolError, match="no database file"):
        Database(path.parent / "gone.db").sqlite_tables(call=ToolContext())
    assert not (path.parent / "gone.db").exists()
