"""Every odd file loads exactly or is refused in one line: no third way, whatever its bytes."""

import codecs
import csv
import gzip
import io
import json
import os
import random
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from compression_config import UserError
from corpus import readers
from corpus.readers import read_file
from corpus.row_formats import DELIMITERS, RowLines, csv_rows

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "300"))
ANY = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
PLAIN = "text,label\nগান ভালো 😀,1\nx,0\n"
READ = {"text": ["গান ভালো 😀", "x"], "label": ["1", "0"]}
LONG = "ab\n" * 3_500_000


def zstd(content: str) -> bytes:
    return pa.compress(content.encode(), "zstd", asbytes=True)


def parquet(**columns) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def columns_of(path) -> dict[str, list]:
    """The table by column, after a look at its types and at every byte."""
    table = read_file(str(path), "--data")
    assert set(table.schema.types) == {pa.string()} and table.num_rows
    table.validate(full=True)
    return table.to_pydict()


@pytest.mark.parametrize(
    "name, content, columns",
    [
        ("plain.csv", PLAIN, READ),
        ("no_last_newline.csv", PLAIN.rstrip(), READ),
        ("utf8_bom.csv", codecs.BOM_UTF8 + PLAIN.encode(), READ),
        ("bom_before_a_quote.csv", codecs.BOM_UTF8 + b'"a","b"\n1,2', {"a": ["1"], "b": ["2"]}),
        ("utf16.csv", PLAIN.encode("utf-16"), READ),
        ("utf16_be.csv", codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), READ),
        ("utf16_le_no_bom.csv", PLAIN.encode("utf-16-le"), READ),
        ("utf16_be_no_bom.csv", PLAIN.encode("utf-16-be"), READ),
        ("utf16_cr.csv", PLAIN.replace("\n", "\r").encode("utf-16"), READ),
        (
            "cp1252.csv",
            "a,b\n“curly” – café,1\n".encode("cp1252"),
            {"a": ["“curly” – café"], "b": ["1"]},
        ),
        ("latin1.csv", b"a,b\ncaf\xe9 \x81,1\n", {"a": ["café \x81"], "b": ["1"]}),
        (
            "late_cp1252.csv",
            b"a,b\n" + b"x,1\n" * 50_000 + b"\xe9,2\n",
            {"a": ["x"] * 50_000 + ["é"], "b": ["1"] * 50_000 + ["2"]},
        ),
        ("replacement_character.csv", "a,b\n\ufffd,1\n", {"a": ["\ufffd"], "b": ["1"]}),
        ("gz.csv.gz", gzip.compress(PLAIN.encode()), READ),
        (
            "two_members.CSV.GZ",
            gzip.compress(b"a,b\n1,") + gzip.compress(b"2\n"),
            {"a": ["1"], "b": ["2"]},
        ),
        ("zst.csv.zst", zstd(PLAIN), READ),
        ("utf16.tsv.gz", gzip.compress(PLAIN.replace(",", "\t").encode("utf-16")), READ),
        ("semicolon.csv", PLAIN.replace(",", ";"), READ),
        ("tab.tsv", PLAIN.replace(",", "\t"), READ),
        ("pipe.txt", PLAIN.replace(",", "|"), READ),
        ("comma.txt", PLAIN, READ),
        (
            "semicolons_in_texts.csv",
            "a,b\n" + "x; y; z,1\n" * 3,
            {"a": ["x; y; z"] * 3, "b": ["1"] * 3},
        ),
        ("commas_in_texts.csv", "a;b\n" + "x, y,1;1\n" * 3, {"a": ["x, y,1"] * 3, "b": ["1"] * 3}),
        (
            "comma_in_header.csv",
            "text, raw;label\nx;1\ny, z;2\n",
            {"text, raw": ["x", "y, z"], "label": ["1", "2"]},
        ),
        ("quoted.csv", 'a,b\n"x,y\nz","""q"" r"\n', {"a": ["x,y\nz"], "b": ['"q" r']}),
        ("quote_inside.csv", 'a,b\n5" disk,say "no"\n', {"a": ['5" disk'], "b": ['say "no"']}),
        ("crlf.csv", 'a,b\r\n"x\r\ny",1\r\n', {"a": ["x\r\ny"], "b": ["1"]}),
        ("cr.csv", 'a,b\r"x\ry",1\r', {"a": ["x\ry"], "b": ["1"]}),
        (
            "mixed_newlines.csv",
            "a,b\n1,2\r\n3,4\r5,6",
            {"a": ["1", "3", "5"], "b": ["2", "4", "6"]},
        ),
        ("blank_lines.csv", "\n\r\na,b\n\n\n1,2\r\n\r\n", {"a": ["1"], "b": ["2"]}),
        ("empty_is_null.csv", "a,b\n,\"\"\n ,''\n", {"a": [None, " "], "b": [None, "''"]}),
        (
            "no_other_null.csv",
            "a,b\nNA,None\nnull,nan\n",
            {"a": ["NA", "null"], "b": ["None", "nan"]},
        ),
        ("no_number.csv", "a,b\n007,1e3\n1.0,TRUE\n", {"a": ["007", "1.0"], "b": ["1e3", "TRUE"]}),
        ("spaces_in_header.csv", ' a ,"b\t"\n 1 ,2\n', {"a": [" 1 "], "b": ["2"]}),
        ("nameless.csv", ",text,\n0,x,y\n", {"column 1": ["0"], "text": ["x"], "column 3": ["y"]}),
        ("one_column.csv", 'a\nx;y\n""\nz\n', {"a": ["x;y", None, "z"]}),
        (
            "line_separator.csv",
            "a,b\nx\u2028y\x85z\x0b\x1c,1\n",
            {"a": ["x\u2028y\x85z\x0b\x1c"], "b": ["1"]},
        ),
        ("long_field.csv", f'a,b\n"{LONG}",1\nx,2\n', {"a": [LONG, "x"], "b": ["1", "2"]}),
        (
            "one_quote_in_all.csv",
            'a,b\n5" disk,1\n' + "x,1\n" * 50_000,
            {"a": ['5" disk'] + ["x"] * 50_000, "b": ["1"] * 50_001},
        ),
        (
            "plain.jsonl",
            '{"a": "x\\ny", "b": null}\n\n{"a": "গান \\ud83d\\ude00", "b": ""}',
            {"a": ["x\ny", "গান 😀"], "b": [None, ""]},
        ),
        (
            "mixed.ndjson",
            '{"a": 1}\r\n{"a": "1"}\r{"a": 1.0}\n{"a": true}\n{"a": 1e2}\n{"a": 123456789012345678901}',
            {"a": ["1", "1", "1.0", "true", "1e2", "123456789012345678901"]},
        ),
        (
            "ragged.jsonl",
            '{"a": 1}\n{"b": 2, "a": 3}\n{" c ": "NA"}',
            {"a": ["1", "3", None], "b": [None, "2", None], "c": [None, None, "NA"]},
        ),
        (
            "ragged_late.jsonl",
            '{"a": 1}\n' * 10_000 + '{"b": 2}',
            {"a": ["1"] * 10_000 + [None], "b": [None] * 10_000 + ["2"]},
        ),
        ("utf16.jsonl", '{"a": "গান"}'.encode("utf-16"), {"a": ["গান"]}),
        ("line_separator.jsonl", '{"a": "x\u2028y\x85z"}', {"a": ["x\u2028y\x85z"]}),
        ("lines.json.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'), {"a": ["1", "2"]}),
        ("array.json", json.dumps([{"a": 1}, {"a": "x"}], indent=1), {"a": ["1", "x"]}),
        (
            "many.parquet",
            parquet(
                a=["x", None],
                b=[1, None],
                c=[0.5, 1.0],
                d=[True, False],
                e=[b"y", b"z"],
                f=pa.array(["u", "u"]).dictionary_encode(),
                g=pa.array([3, 4]).dictionary_encode(),
                left=[[1], [2]],
                out=[{"k": 1}, None],
                no_text=[b"\xff", b""],
            ),
            {
                "a": ["x", None],
                "b": ["1", None],
                "c": ["0.5", "1"],
                "d": ["true", "false"],
                "e": ["y", "z"],
                "f": ["u", "u"],
                "g": ["3", "4"],
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 40 else "",
)
def test_an_odd_file_is_read_exactly(name, content, columns, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    found = columns_of(tmp_path / name)
    assert found == columns and list(found) == list(columns)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("none.csv", None, "there is no such file"),
        ("empty.csv", "", "that file is empty"),
        ("blank.csv", "\n\n  \n".replace(" ", ""), "it has no rows"),
        ("nothing.csv.gz", gzip.compress(b""), "it has no rows"),
        ("header_only.csv", "a,b\n", "it has no rows"),
        ("duplicates.csv", "a, a,b,b\n1,2,3,4", "its header names a, b more than once"),
        ("short_row.csv", 'a,b\n"x\n\ny",1\n\nz\n', "line 6 has 1 fields instead of 2"),
        ("long_row.csv", "a,b\n1,2\n1,2,3\n", "line 3 has 3 fields instead of 2"),
        (
            "late_long_row.csv",
            "a,b\n" + "1,2\n" * 50_000 + "1,2,3",
            "line 50002 has 3 fields instead of 2",
        ),
        (
            "cut_in_a_quote.csv",
            'a,b\n1,"x\ny"\n"2\n3","cut\nhere\n',
            "line 4 has a quote that is never closed",
        ),
        ("cut_at_a_quote.csv", 'a,b\n1,2\n3,"', "line 3 has a quote that is never closed"),
        ("cut_in_one_column.csv", 'a\n1\n"', "line 3 has a quote that is never closed"),
        (
            "cut_early.csv",
            'a,b\n"x,1\n' + "x,1\n" * 50_000,
            "line 2 has a quote that is never closed",
        ),
        ("cut_in_the_header.csv", 'a,"b\n1,2\n', "line 1 has a quote that is never closed"),
        ("endless_header.csv", "a," * 70_000, "its header is longer than 65536 characters"),
        ("nul.csv", b"a,b\n1,x\0\n", "it is not text: a NUL byte at offset 7"),
        (
            "late_nul.csv",
            b"a,b\n" + b"\xe9,1\n" * 50_000 + b"\0",
            "it is not text: a NUL byte at offset 200004",
        ),
        ("nul.jsonl", b'{"a": 1}\n\0', "it is not text: a NUL byte at offset 9"),
        ("utf32.csv", PLAIN.encode("utf-32"), "it is not text: a NUL"),
        (
            "utf16_cut.csv",
            PLAIN.encode("utf-16")[:-1],
            "it is damaged UTF-16: the byte at offset 5",
        ),
        (
            "one_wrong_byte.csv",
            PLAIN.encode() + b"\xff,1\n",
            "it is damaged UTF-8: the byte at offset",
        ),
        (
            "marked_wrong_byte.csv",
            codecs.BOM_UTF8 + b"a,b\n\xff,1\n",
            "it is damaged UTF-8: the byte at offset 7",
        ),
        ("zip.csv", b"PK\x03\x04" + bytes(50), "it is a zip archive or an Excel workbook"),
        ("image.csv", b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(3000), "it is an image"),
        ("noise.csv", random.Random(0).randbytes(3000), "it is not text: a NUL byte at offset"),
        ("gzip.csv", gzip.compress(PLAIN.encode()), "it is gzip data"),
        ("parquet.csv", parquet(a=["x"]), "it is Parquet"),
        ("page.csv", "<!DOCTYPE html><html>", "it is a web page"),
        ("zip.csv.gz", gzip.compress(b"PK\x03\x04"), "it is a zip archive"),
        ("text.csv.gz", PLAIN, "it cannot be read: zlib inflate failed"),
        ("text.csv.zst", PLAIN, "it cannot be read: ZSTD decompress failed"),
        (
            "cut.csv.gz",
            gzip.compress(PLAIN.encode() * 1000)[:-9],
            "it cannot be read: Truncated compressed stream",
        ),
        ("cut.csv.zst", zstd(PLAIN * 1000)[:-9], "it cannot be read: Truncated compressed stream"),
        ("text.parquet", PLAIN, "it cannot be read: Parquet magic bytes not found"),
        (
            "cut.parquet",
            parquet(a=["x"] * 99)[:-9],
            "it cannot be read: Parquet magic bytes not found",
        ),
        ("nested_only.parquet", parquet(a=[[1]]), "it has no rows"),
        ("no_rows.parquet", parquet(a=pa.array([], pa.string())), "it has no rows"),
        (
            "wrong_utf8.parquet",
            parquet(a=["xyzzy"] * 3).replace(b"xyzzy", b"xy\xffzy"),
            "it cannot be read: ",
        ),
        (
            "broken_line.jsonl",
            '{"a": 1}\n\n{"a": \n{"a": 2}',
            "line 3 is not a JSON object: Expecting value",
        ),
        ("csv.jsonl", PLAIN, "line 1 is not a JSON object"),
        ("scalar.jsonl", '{"a": 1}\n3', "line 2 is not a JSON object"),
        ("empty_object.jsonl", "{}", "line 1 is not a JSON object with keys and values"),
        ("nested.jsonl", '{"a": 1}\n{"a": {"b": 1}}', "line 2 has a list or an object in a,"),
        ("nested.json", '[{"a": 1},\n{"a": [1]}]', "object 2 has a list or an object in a,"),
        (
            "broken.json",
            '[{"a": 1},\n{"a" 2}]',
            "line 2 is not a JSON object: Expecting ':' delimiter",
        ),
        ("pretty.json", '{\n "a": 1\n}\n', "line 1 is not a JSON object: Expecting property name"),
        (
            "deep.jsonl",
            '{"a": ' + "[" * 100_000,
            "line 1 is not a JSON object: maximum recursion depth",
        ),
        ("same_key.jsonl", '{"a": 1, "a": 2}', "line 1 is not a JSON object: a key is repeated"),
        (
            "same_name.jsonl",
            '{"a": 1, "a ": 2}',
            "line 1 has two keys that differ only in white space",
        ),
        ("nan.jsonl", '{"a": NaN}', "line 1 is not a JSON object: NaN is not a JSON value"),
        (
            "half_a_pair.jsonl",
            '{"a": "x"}\n{"a": "\\ud83d"}',
            "line 2 has half of a surrogate pair",
        ),
        ("half_a_pair_named.jsonl", '{"\\ude00": 1}', "line 1 has half of a surrogate pair"),
        ("table.xlsx", b"PK\x03\x04", "its name must end in .csv or .tsv or"),
        ("no_suffix", PLAIN, "its name must end in .csv or .tsv or"),
        ("data.gz", gzip.compress(PLAIN.encode()), "its name must end in .csv or .tsv or"),
        (
            "data.parquet.gz",
            gzip.compress(parquet(a=["x"])),
            "its name must end in .csv or .tsv or",
        ),
    ],
    ids=lambda value: (
        value if isinstance(value, str) and len(value) < 30 and "." in value[1:] else ""
    ),
)
def test_an_unreadable_file_gives_one_line(name, content, said, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as raised:
        read_file(str(path), "--data")
    (line,) = raised.value.lines
    assert line.startswith(f"--data is {path}, but {said}") and line.isprintable()


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match="^--data is .*, but that is a directory$"):
        read_file(str(tmp_path), "--data")


def test_a_file_that_may_not_be_read_gives_one_line(tmp_path, monkeypatch):
    (tmp_path / "x.csv").write_text(PLAIN)
    (tmp_path / "x.csv").chmod(0)
    if os.access(tmp_path / "x.csv", os.R_OK):
        pytest.skip("root may read anything")
    with pytest.raises(UserError, match="Permission denied"):
        read_file(str(tmp_path / "x.csv"), "--data")


@pytest.mark.parametrize(
    "content, said",
    [
        (PLAIN.encode("utf-16"), ["read as utf-16-le"]),
        ("a,b\né,1".encode("cp1252"), ["read as cp1252"]),
        (b"a,b\n\x81,1", ["read as latin-1"]),
        (PLAIN.encode(), []),
    ],
)
def test_the_log_names_an_encoding_other_than_utf8(content, said, tmp_path, caplog):
    (tmp_path / "x.csv").write_bytes(content)
    with caplog.at_level("INFO", "corpus"):
        read_file(str(tmp_path / "x.csv"), "--data")
    assert [record.message.partition(" is ")[2] for record in caplog.records] == said


def test_the_log_names_the_parquet_columns_that_are_left_out(tmp_path, caplog):
    (tmp_path / "x.parquet").write_bytes(parquet(a=["x"], b=[[1]], c=[b"\xff"]))
    with caplog.at_level("INFO", "corpus"):
        assert columns_of(tmp_path / "x.parquet") == {"a": ["x"]}
    assert caplog.records[0].message.endswith("left out: b, c")


def test_a_bar_shows_on_stderr_for_slow_files_alone(tmp_path, capsys, monkeypatch):
    (tmp_path / "x.csv").write_text(PLAIN)
    read_file(str(tmp_path / "x.csv"), "--data")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(readers, "BAR_DELAY_S", 0)
    read_file(str(tmp_path / "x.csv"), "--data")
    printed = capsys.readouterr()
    assert "read x.csv:" in printed.err and printed.out == ""


def test_the_limit_of_the_csv_module_is_left_as_it_was(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "x.csv").write_text("a,b\n1\n")
    with pytest.raises(UserError):
        read_file(str(tmp_path / "x.csv"), "--data")
    assert csv.field_size_limit() == limit


# Without surrogates, which UTF-8 lacks, and NUL, which no text holds. The header is plain, as one with other
# separators in it is ambiguous. Rows end in \r\n: with \n, Python 3.11 leaves a lone \r unquoted, which ends a row.
FIELD = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from(' ,;\t|"\r\n'),
    max_size=12,
)
ROWS = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(FIELD, min_size=width, max_size=width), min_size=1, max_size=8)
)


@ANY
@given(
    ROWS,
    st.sampled_from(DELIMITERS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_pythons_csv_writes_is_read_back(tmp_path_factory, rows, separator, quoting, encoding):
    path, names = tmp_path_factory.getbasetemp() / "round.csv", ["a", "b", "c", "d"][: len(rows[0])]
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([names, *rows])
    assert columns_of(path) == {
        name: [field or None for field in column]
        for name, column in zip(names, zip(*rows, strict=True), strict=True)
    }


SCRAPS = st.lists(
    st.sampled_from(["a", ",", '"', "\n", "\r", "\r\n", '",', ',"', '"\n', '\n"', " "]), max_size=25
)


def strict_rows(text: str) -> list[list[str]] | None:
    """The rows of a CSV as Python's csv module reads them; None if it is invalid."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error:
        return None


@ANY
@example(["a", '"', "\r\n", "\r\n", '"', ",", "a"])
@given(SCRAPS)
def test_any_text_is_split_into_rows_as_by_pythons_csv(tmp_path_factory, scraps):
    path = tmp_path_factory.getbasetemp() / "scraps.csv"
    text = "h,k\n" + "".join(scraps)
    path.write_bytes(text.encode())
    rows = strict_rows(text)
    is_valid = rows is not None and len(rows) > 1 and {len(row) for row in rows} == {2}
    if not is_valid:
        with pytest.raises(UserError):
            read_file(str(path), "--data")
        return
    columns = columns_of(path)
    expected = [[field or None for field in row] for row in rows[1:]]
    assert [list(row) for row in zip(*columns.values(), strict=True)] == expected


@ANY
@given(SCRAPS, SCRAPS)
def test_every_line_of_a_damaged_csv_is_in_a_row_or_in_an_error(scraps, more_scraps):
    """Reading continues after errors, and no line is lost or read into two rows."""
    text = "".join(scraps) + '\n"an open quote\n' + "".join(more_scraps)
    lines = list(io.StringIO(text, newline=""))
    rows = list(csv_rows(RowLines(iter(lines)), ",", ["h", "k"]))
    sizes = sum(row.size for row in rows)
    blank = sum(len(line) for line in lines if line.strip("\r\n") == "")
    assert len(text) - blank <= sizes <= len(text)
    assert all((row.values is None) == bool(row.error) for row in rows)
    assert [row.number for row in rows] == sorted({row.number for row in rows})


@ANY
@given(
    st.lists(
        st.dictionaries(
            FIELD.map(lambda name: f"_{name}_"), st.none() | FIELD, min_size=1, max_size=3
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
def test_what_pythons_json_writes_is_read_back(tmp_path_factory, records, ascii_only):
    path = tmp_path_factory.getbasetemp() / "round.jsonl"
    path.write_text(
        "\n".join(json.dumps(record, ensure_ascii=ascii_only) for record in records),
        encoding="utf-8",
    )
    names = dict.fromkeys(name for record in records for name in record)
    assert columns_of(path) == {name: [record.get(name) for record in records] for name in names}


TEXTS = ["গান ভালো 😀", 'he said "no", twice', "two\nlines", "", "café; naïve|x\ty"]
SHEET = "text,label\r\n" + "".join(
    f'"{text.replace(chr(34), chr(34) * 2)}",{i % 2}\n' for i, text in enumerate(TEXTS)
)
LINES = "".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(TEXTS))
SOUND = [
    ("sheet.csv", SHEET.encode()),
    ("sheet16.csv", SHEET.encode("utf-16")),
    ("sheet.txt", SHEET.encode("cp1252", "ignore")),
    ("lines.jsonl", LINES.encode()),
    ("array.json", json.dumps([{"a": 1}, {"b": "x"}]).encode()),
    ("sheet.csv.gz", gzip.compress(SHEET.encode())),
    ("lines.jsonl.zst", zstd(LINES)),
    (
        "table.parquet",
        parquet(
            text=TEXTS,
            label=[0, 1, None, 1, 0],
            share=[0.5] * 5,
            on=[True] * 5,
            kind=pa.array(list("aabba")).dictionary_encode(),
            when=pa.array([1] * 5, pa.date32()),
        ),
    ),
]


def damaged(rng: random.Random, content: bytes) -> bytes:
    """`content` after a few edits."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        special = rng.choice(
            [b'"', b",", b"\n", b"\r", b"\0", b"\\", b"{", b"]", b"\xff", rng.randbytes(3)]
        )
        rng.choice(
            [
                lambda: data.insert(at, rng.randrange(256)),  # noqa: B023
                lambda: data.__setitem__(slice(at, at), special),  # noqa: B023
                lambda: data.__delitem__(slice(at, at + rng.randint(1, 4))),  # noqa: B023
                lambda: data.__setitem__(slice(at, at + 1), bytes([rng.randrange(256)])),  # noqa: B023
                lambda: data.__setitem__(
                    slice(at, at + 1), bytes(b ^ 1 << rng.randrange(8) for b in data[at : at + 1])
                ),  # noqa: B023
                lambda: data.__delitem__(slice(end, None)),  # noqa: B023
                lambda: data.__setitem__(slice(end, end), data[at:end]),  # noqa: B023
            ]
        )()
    return bytes(data)


def test_any_damaged_file_loads_or_gives_one_line(tmp_path):
    rng, refused = random.Random(0), 0
    for turn in range(EXAMPLES):
        name, content = SOUND[turn % len(SOUND)]
        if name.endswith(".gz") and turn % 3:  # as a rule the damage is under a sound checksum
            content = gzip.compress(damaged(rng, zlib.decompress(content, 31)))
        else:
            content = damaged(rng, content)
        (tmp_path / name).write_bytes(content)
        try:
            columns_of(tmp_path / name)
        except UserError as error:
            refused += 1
            (line,) = error.lines
            assert line.startswith(f"--data is {tmp_path / name}, but ") and line.isprintable()
    assert 0 < refused < EXAMPLES
