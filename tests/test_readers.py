"""Reading for training: every odd file loads exactly or is rejected in one line, whatever its
bytes; and inference reads the same rows."""

import csv
import gzip
import io
import json
import os
import random
import re
import zlib
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from odd_files import PLAIN, READABLE, UNREADABLE, encoded_parquet, parquet, zstd

from corpus import parquet_rows, readers
from corpus.input_files import ReadOptions, open_rows
from corpus.prediction_files import as_text
from corpus.readers import read_file, read_rows, stream_texts
from corpus.row_formats import DELIMITERS, CsvLayout, RowLines, csv_rows
from runtime.errors import UserError

EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "300"))
PROPERTY = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    """A file with this content."""
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_columns(path: Path) -> dict[str, list]:
    """The columns of a file for training, after a check of their types and of every byte."""
    table = read_file(str(path), "--data")
    assert set(table.schema.types) == {pa.string()} and table.num_rows
    table.validate(full=True)
    return table.to_pydict()


@pytest.mark.parametrize(
    ("name", "content", "columns"), READABLE, ids=[case[0] for case in READABLE]
)
def test_an_odd_file_is_read_exactly(name, content, columns, tmp_path):
    read = read_columns(write(tmp_path, name, content))
    assert read == columns and list(read) == list(columns)


@pytest.mark.parametrize(
    ("name", "content", "columns"), READABLE, ids=[case[0] for case in READABLE]
)
def test_inference_reads_the_same_rows_as_training(name, content, columns, tmp_path):
    path = write(tmp_path, name, content)
    input_format = "csv" if path.suffix == ".txt" else None
    with open_rows(str(path), "--input", input_format, keep_invalid=True, find_keys=True) as file:
        rows = list(file.rows)
        assert [column for column in file.columns if column in columns] == list(columns)
    assert [row.error for row in rows] == [""] * len(rows)
    for column, texts in columns.items():
        read = [as_text(row.values.get(column)) for row in rows]
        if not name.endswith(".parquet") or column != "c":  # there, 1.0 is the text "1"
            assert read == texts


@pytest.mark.parametrize(
    ("name", "content", "reason"), UNREADABLE, ids=[case[0] for case in UNREADABLE]
)
def test_an_unreadable_file_gives_one_line(name, content, reason, tmp_path):
    path = tmp_path / name
    if content is not None:
        write(tmp_path, name, content)
    with pytest.raises(UserError) as raised:
        read_file(str(path), "--data")
    (line,) = raised.value.lines
    assert line.startswith(f"--data is {path}, but {reason}") and line.isprintable()


def test_texts_are_the_lines_of_a_txt_file_or_a_column(tmp_path):
    for name, content, texts in (
        ("x.txt", "a,b\n\nc\n", ["a,b", "", "c"]),
        ("x.csv", "n,text\n1,a\n2,b\n", ["a", "b"]),
        ("only.csv", "other\na\n", ["a"]),
        ("x.parquet", parquet(n=[1], text=["a"]), ["a"]),
        ("x.jsonl.gz", gzip.compress(b'{"text": "a"}\n'), ["a"]),
    ):
        path = write(tmp_path, name, content)
        chunks = list(stream_texts(str(path), "--data", "text"))
        assert pa.chunked_array(
            [text for chunk in chunks for text in chunk.chunks]
        ).to_pylist() == (texts)
    with pytest.raises(UserError, match="has no column comment; it has n, text$"):
        list(stream_texts(str(tmp_path / "x.csv"), "--data", "comment"))


def test_the_log_says_which_line_shows_that_quotes_are_text(tmp_path, caplog):
    path = write(tmp_path, "x\x1b.tsv", 'a\tb\nx\t0\n"x\t1\ny"\t0\n')
    read_file(str(path), "--data")
    assert caplog.messages == [
        f"note: {tmp_path}/x\\x1b.tsv is read without quoting: line 3 has a quote that does not "
        "enclose a cell"
    ]


def test_lines_that_could_be_rows_are_noted_if_they_are_read_as_one(tmp_path, caplog):
    path = write(tmp_path, "x.csv", 'a\nx\n"x\n\ny"\n"x\ny"\n')
    assert read_columns(path) == {"a": ["x", "x\n\ny", "x\ny"]}
    other = write(tmp_path, "y.csv", 'a,b\n"x, z",1\n"x,1\ny",1\n')
    assert read_columns(other) == {"a": ["x, z", "x,1\ny"], "b": ["1", "1"]}
    assert caplog.messages == [
        f"note: {path} has a quote from line 3 to line 5, which are read as one row",
        f"note: {other} has a quote from line 3 to line 4, which are read as one row",
    ]


ORDINARY_TEXTS = {
    "poems": ["\n".join(f"line {i}, then {verse}" for verse in range(7)) for i in range(60)],
    "letters": [f"Dear Bob, number {i}\nsee you" if i % 3 else f"text {i}" for i in range(60)],
    "one poem": [f'text {i}, and "so" on' for i in range(59)] + ["verse, and\n" * 6 + "end"],
    "addresses": ["name, street, town\n" * 7 + str(i) for i in range(60)],
    "amounts": ["1,000 of\n" * 7 + f"2,{i}" for i in range(60)],
    "quotes": [f'text {i};\n"said, and" done' for i in range(60)],
}


@pytest.mark.parametrize("name", ORDINARY_TEXTS)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("columns", [2, 3])
def test_what_pandas_writes_of_ordinary_texts_is_read_back(name, separator, columns, tmp_path):
    texts = ORDINARY_TEXTS[name]
    table = pd.DataFrame({"text": texts, "label": ["pos", "neg"] * 30})
    if columns == 3:
        table.insert(1, "source", "web")
    path = tmp_path / "x.csv"
    table.to_csv(path, index=False, sep=separator)
    assert read_columns(path) == table.to_dict("list")
    with open_rows(str(path), "--input", "csv", keep_invalid=True) as file:
        assert [row.values["text"] for row in file.rows] == texts


def test_parquet_with_a_dictionary_that_cannot_be_read_alone_is_read(tmp_path, monkeypatch):
    def names(file):
        return file.schema_arrow.names

    path = write(tmp_path, "x.parquet", encoded_parquet("DELTA_BYTE_ARRAY"))
    monkeypatch.setattr(parquet_rows, "dictionary_columns", names)
    assert read_columns(path) == {"a": ["x", "xy", None]}


def test_without_a_header_the_first_line_is_a_row(tmp_path):
    path = write(tmp_path, "x.csv", '\n"first, row",1\nsecond,0\n')
    rows = read_rows(str(path), "--data", ReadOptions(has_header=False))
    assert rows.table.to_pydict() == {
        "column_1": ["first, row", "second"],
        "column_2": ["1", "0"],
    }
    assert rows.numbers.tolist() == [2, 3]
    path = write(tmp_path, "x.jsonl", '{"a": 1}')
    with pytest.raises(UserError, match="--no_header is given, but --data is .*x.jsonl, which"):
        read_rows(str(path), "--data", ReadOptions(has_header=False))


BOMBS = {  # each has 5 MB of content
    "one_text_many_times.parquet": parquet(
        text=pa.DictionaryArray.from_arrays([0] * 5000, ["x" * 1000])
    ),
    "zeros.parquet": parquet(number=[0] * 625_000),
    "lines.csv.gz": gzip.compress(b"text\n" + b"a text\n" * 750_000),
    "one_line.txt.zst": zstd("a" * 5_000_000),
    "array.json.gz": gzip.compress(b"[" + b"0," * 2_500_000 + b"0]"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_with_a_large_content_is_refused_before_it_is_in_memory(name, tmp_path):
    path = write(tmp_path, name, BOMBS[name])
    assert path.stat().st_size < 100_000
    message = "its content is larger than 0.004 GB; --max_input_gb raises the limit"
    options = ReadOptions(max_bytes=4_000_000)
    with pytest.raises(UserError, match=message):
        read_rows(str(path), "--data", options)
    with (
        pytest.raises(UserError, match=message),
        open_rows(str(path), "--data", find_keys=True, options=options),
    ):
        pass
    if "lines" in name or "parquet" in name:
        assert len(read_rows(str(path), "--data", ReadOptions(max_bytes=6_000_000)).table)


def test_the_batches_of_a_parquet_file_with_long_texts_have_few_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "BATCH_BYTES", 100_000)
    content = BOMBS["one_text_many_times.parquet"]
    path = write(tmp_path, "x.parquet", content)
    file = parquet_rows.open_parquet(path)
    sizes = [batch.num_rows for batch in parquet_rows.bounded_batches(path, file, 10**9)]
    assert sizes == [100] * 50
    path = write(tmp_path, "x.parquet", parquet(text=["x" * 1000] * 500, n=range(500)))
    sizes = [len(part.table) for part in readers.parquet_tables(str(path), 10**9)]
    assert sizes == [100] * 5


def test_a_directory_is_not_a_file(tmp_path):
    with pytest.raises(UserError, match="^--data is .*, but that is a directory$"):
        read_file(str(tmp_path), "--data")


def test_a_pipe_is_refused_for_training(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="but that is a pipe or a device, which can be read only"):
        read_file(str(tmp_path / "pipe.csv"), "--data")


def test_a_file_without_read_permission_gives_one_line(tmp_path):
    (tmp_path / "x.csv").write_text(PLAIN)
    (tmp_path / "x.csv").chmod(0)
    if os.access(tmp_path / "x.csv", os.R_OK):
        pytest.skip("root can read every file")
    with pytest.raises(UserError, match="Permission denied"):
        read_file(str(tmp_path / "x.csv"), "--data")


UTF_8_ADVICE = "if letters are wrong, save the file as UTF-8 (in Excel: CSV UTF-8)"


@pytest.mark.parametrize(
    ("content", "messages"),
    [
        (PLAIN.encode("utf-16"), ["read as utf-16-le"]),
        ("a,b\né,1".encode("cp1252"), [f"not UTF-8 and is read as cp1252; {UTF_8_ADVICE}"]),
        (b"a,b\n\x81,1", [f"not UTF-8 and is read as latin-1; {UTF_8_ADVICE}"]),
        (PLAIN.encode(), []),
    ],
)
def test_the_log_names_an_encoding_other_than_utf8(content, messages, tmp_path, caplog):
    (tmp_path / "x.csv").write_bytes(content)
    with caplog.at_level("INFO", "corpus"):
        read_file(str(tmp_path / "x.csv"), "--data")
    assert [record.message.partition(" is ")[2] for record in caplog.records] == messages


def test_columns_without_plain_values_are_left_out_and_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(parquet(a=["x"], b=[[1]], c=[b"\xff"], d=[{"k": 1}]))
    rows = read_rows(str(tmp_path / "x.parquet"), "--data")
    assert rows.table.to_pydict() == {"a": ["x"], "b": ["[1]"]}
    assert list(rows.lists) == ["b"] and list(rows.nested) == ["c", "d"]
    lines = ['{"a": "x", "b": "y"}', '{"a": "x", "b": [1]}', '{"a": "x", "c": {}, "d": [{}]}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    rows = read_rows(str(tmp_path / "x.jsonl"), "--data")
    assert rows.table.to_pydict() == {"a": ["x"] * 3, "b": ["y", "[1]", None]}
    assert (rows.lists, rows.nested) == ({"b": 2}, {"c": 3, "d": 3})


def test_a_progress_bar_appears_on_stderr_only_for_slow_files(tmp_path, capsys, monkeypatch):
    (tmp_path / "x.csv").write_text(PLAIN)
    read_file(str(tmp_path / "x.csv"), "--data")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(readers, "BAR_DELAY_S", 0)
    read_file(str(tmp_path / "x.csv"), "--data")
    printed = capsys.readouterr()
    assert "read x.csv:" in printed.err and printed.out == ""


def test_the_cell_limit_of_the_csv_module_is_restored(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "x.csv").write_text("a,b\n1\n")
    with pytest.raises(UserError):
        read_file(str(tmp_path / "x.csv"), "--data")
    assert csv.field_size_limit() == limit


# Without surrogates, which UTF-8 cannot encode, and NUL, which is not text. The header is plain,
# because other delimiters in it would be ambiguous. Rows end in \r\n: with \n, Python 3.11 does not
# quote a lone \r, which ends a row.
FIELD = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0")
    | st.sampled_from(' ,;\t|"\r\n'),
    max_size=12,
)
ROWS = st.integers(2, 4).flatmap(
    lambda width: st.lists(st.lists(FIELD, min_size=width, max_size=width), min_size=1, max_size=8)
)


@PROPERTY
@given(
    ROWS,
    st.sampled_from(DELIMITERS),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_what_pythons_csv_writes_is_read_back(
    tmp_path_factory, caplog, rows, separator, quoting, encoding
):
    caplog.clear()
    path, names = tmp_path_factory.getbasetemp() / "round.csv", ["a", "b", "c", "d"][: len(rows[0])]
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=separator, quoting=quoting).writerows([names, *rows])
    try:
        columns = read_columns(path)
    except UserError as error:
        assert "may be the start of one quoted" in str(error) or "without quoting" in caplog.text
        assert quoting == csv.QUOTE_MINIMAL and has_lines_like_rows(rows, separator)
        return
    expected = {}
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        expected[name] = [field or None for field in column]
    if columns != expected:  # a row of several lines, each with all delimiters
        assert quoting == csv.QUOTE_MINIMAL and has_lines_like_rows(rows, separator)
        assert "is read without quoting" in caplog.text


def has_lines_like_rows(rows: list[list[str]], separator: str) -> bool:
    """Whether some row, written as CSV, has several lines that could be rows, as documented."""
    for row in rows:
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=separator).writerow(row)
        lines = re.split(r"\r\n|\r|\n", text.getvalue().removesuffix("\r\n"))
        filled = [line for line in lines if line.strip()]
        alike = [line.count(separator) == len(row) - 1 for line in filled]
        is_suspect = alike[0] and alike[-1] and sum(alike) > len(alike) * 2 / 3
        if separator == "\t":
            is_suspect = text.getvalue().count(separator) >= len(row)
        if len(lines) > 1 and is_suspect:
            return True
    return False


SCRAPS = st.lists(
    st.sampled_from(["a", ",", '"', "\n", "\r", "\r\n", '",', ',"', '"\n', '\n"', " "]), max_size=25
)


def strict_rows(text: str) -> list[list[str]] | None:
    """The rows of a CSV as Python's csv module reads them; None if it is invalid."""
    try:
        return [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error:
        return None


@PROPERTY
@example(["a", '"', "\r\n", "\r\n", '"', ",", "a"])
@given(SCRAPS)
def test_any_text_is_split_into_rows_as_by_pythons_csv(tmp_path_factory, caplog, scraps):
    path = tmp_path_factory.getbasetemp() / "scraps.csv"
    text = "h,k\n" + "".join(scraps)
    path.write_bytes(text.encode())
    caplog.clear()
    rows = strict_rows(text)
    is_valid = rows is not None and len(rows) > 1 and {len(row) for row in rows} == {2}
    try:
        columns = read_columns(path)
    except UserError as error:
        is_doubted = "may be the start of one" in str(error) or "without quoting" in caplog.text
        assert not is_valid or is_doubted
        return
    if "without quoting" in caplog.text:  # every line is a row
        rows = [line.split(",") for line in re.split(r"\r\n|\r|\n", text) if line]
    else:
        assert is_valid
    expected = [[field or None for field in row] for row in rows[1:]]
    assert [list(row) for row in zip(*columns.values(), strict=True)] == expected


UNQUOTED_CELL = st.text(st.sampled_from('ab" ,'), min_size=1, max_size=6)


@PROPERTY
@example([("a", 0), ('"b', 1), ("c", 0), ('d"', 1)], [])
@given(
    st.lists(st.tuples(UNQUOTED_CELL, st.integers(0, 1)), min_size=1, max_size=12),
    st.lists(st.integers(0, 11), max_size=2),
)
def test_an_unquoted_tsv_never_loses_a_row_silently(tmp_path_factory, caplog, rows, damaged):
    """Some rows may have an extra cell: the file is refused, or read without it by inference."""
    path = tmp_path_factory.getbasetemp() / "unquoted.tsv"
    lines = []
    for number, (text, label) in enumerate(rows):
        ending = "\textra" if number in damaged else ""
        lines.append(f"{text}\t{label}{ending}\n")
    path.write_text("text\tlabel\n" + "".join(lines))
    try:
        columns = read_columns(path)
    except UserError:
        return
    assert len(columns["text"]) == len(rows)
    assert columns["label"] == [str(label) for _, label in rows]


@PROPERTY
@given(SCRAPS, SCRAPS)
def test_every_line_of_a_damaged_csv_is_in_a_row_or_in_an_error(scraps, more_scraps):
    """Reading continues after errors, and no line is lost or read into two rows."""
    text = "".join(scraps) + '\n"an open quote\n' + "".join(more_scraps)
    lines = list(io.StringIO(text, newline=""))
    rows = list(csv_rows(RowLines(iter(lines)), CsvLayout(",", ("h", "k"), "")))
    sizes = sum(row.size for row in rows)
    blank = sum(len(line) for line in lines if line.strip("\r\n") == "")
    assert len(text) - blank <= sizes <= len(text)
    assert all((row.values is None) == bool(row.error) for row in rows)
    assert [row.number for row in rows] == sorted({row.number for row in rows})


@PROPERTY
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
    assert read_columns(path) == {name: [record.get(name) for record in records] for name in names}


TEXTS = ["গান ভালো 😀", 'he said "no", twice', "two\nlines", "", "café; naïve|x\ty"]


def quoted_rows() -> str:
    """TEXTS with labels, as a CSV in which every text is quoted."""
    rows = io.StringIO()
    csv.writer(rows, quoting=csv.QUOTE_ALL).writerows([text, i % 2] for i, text in enumerate(TEXTS))
    return "text,label\r\n" + rows.getvalue()


def json_lines() -> str:
    """TEXTS with labels, as JSON Lines."""
    return "".join(
        json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(TEXTS)
    )


VALID_FILES = [
    ("sheet.csv", quoted_rows().encode()),
    ("sheet16.csv", quoted_rows().encode("utf-16")),
    ("sheet.txt", quoted_rows().encode("cp1252", "ignore")),
    ("lines.jsonl", json_lines().encode()),
    ("array.json", json.dumps([{"a": 1}, {"b": "x"}]).encode()),
    ("sheet.csv.gz", gzip.compress(quoted_rows().encode())),
    ("lines.jsonl.zst", zstd(json_lines())),
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
SPECIAL_BYTES = [b'"', b",", b"\n", b"\r", b"\0", b"\\", b"{", b"]", b"\xff"]


def damage_once(rng: random.Random, data: bytearray) -> None:
    """Insert, delete, change or repeat a few bytes, or cut the end off."""
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    kind = rng.randrange(7)
    if kind == 0:
        data.insert(start, rng.randrange(256))
    elif kind == 1:
        data[start:start] = rng.choice([*SPECIAL_BYTES, rng.randbytes(3)])
    elif kind == 2:
        del data[start : start + rng.randint(1, 4)]
    elif kind == 3:
        data[start : start + 1] = bytes([rng.randrange(256)])
    elif kind == 4:
        flipped = [byte ^ 1 << rng.randrange(8) for byte in data[start : start + 1]]
        data[start : start + 1] = bytes(flipped)
    elif kind == 5:
        del data[end:]
    else:
        data[end:end] = data[start:end]


def damaged(rng: random.Random, content: bytes) -> bytes:
    """`content` after a few edits."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        damage_once(rng, data)
    return bytes(data)


def test_any_damaged_file_loads_or_gives_one_line(tmp_path):
    rng = random.Random(0)
    rejected = 0
    for turn in range(EXAMPLES):
        name, content = VALID_FILES[turn % len(VALID_FILES)]
        if name.endswith(".gz") and turn % 3:  # usually the damage is under a valid checksum
            content = gzip.compress(damaged(rng, zlib.decompress(content, 31)))
        else:
            content = damaged(rng, content)
        path = write(tmp_path, name, content)
        try:
            read_columns(path)
        except UserError as error:
            rejected += 1
            (line,) = error.lines
            assert line.startswith(f"--data is {path}, but ") and line.isprintable()
    assert 0 < rejected < EXAMPLES


def test_inference_reads_any_damaged_file_or_gives_one_line(tmp_path):
    """Rows with errors do not stop it: it reads at least the files that training reads."""
    rng = random.Random(1)
    readable = 0
    for turn in range(EXAMPLES):
        name, content = VALID_FILES[turn % len(VALID_FILES)]
        path = write(tmp_path, name, damaged(rng, content))
        try:
            with open_rows(str(path), "--data", keep_invalid=True, find_keys=True) as file:
                rows = list(file.rows)
            assert all((row.values is None) == bool(row.error) for row in rows)
            readable += 1
        except UserError as error:
            (line,) = error.lines
            assert line.startswith(f"--data is {path}, but ") and line.isprintable()
            with pytest.raises(UserError):
                read_file(str(path), "--data")
    assert 0 < readable < EXAMPLES
