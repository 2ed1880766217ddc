"""Odd files: name and content of each, and the columns or the error that reading it gives."""

import codecs
import gzip
import io
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq

PLAIN = "text,label\nগান ভালো 😀,1\nx,0\n"
COLUMNS = {"text": ["গান ভালো 😀", "x"], "label": ["1", "0"]}
LONG_CELL = "ab\n" * 3_500_000


def encoded_parquet(encoding: str) -> bytes:
    """The bytes of a Parquet file with texts in an encoding."""
    sink = io.BytesIO()
    table = pa.table({"a": ["x", "xy", None]})
    pq.write_table(table, sink, use_dictionary=False, column_encoding={"a": encoding})
    return sink.getvalue()


def zstd(content: str) -> bytes:
    """Content compressed with zstd."""
    return pa.compress(content.encode(), "zstd", asbytes=True)


def parquet(**columns) -> bytes:
    """The bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


READABLE = [  # name, content, columns
    ("plain.csv", PLAIN, COLUMNS),
    ("no_last_newline.csv", PLAIN.rstrip(), COLUMNS),
    ("utf8_bom.csv", codecs.BOM_UTF8 + PLAIN.encode(), COLUMNS),
    ("bom_before_a_quote.csv", codecs.BOM_UTF8 + b'"a","b"\n1,2', {"a": ["1"], "b": ["2"]}),
    ("utf16.csv", PLAIN.encode("utf-16"), COLUMNS),
    ("utf16_be.csv", codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), COLUMNS),
    ("utf16_le_no_bom.csv", PLAIN.encode("utf-16-le"), COLUMNS),
    ("utf16_be_no_bom.csv", PLAIN.encode("utf-16-be"), COLUMNS),
    ("utf16_cr.csv", PLAIN.replace("\n", "\r").encode("utf-16"), COLUMNS),
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
    ("gz.csv.gz", gzip.compress(PLAIN.encode()), COLUMNS),
    (
        "two_members.CSV.GZ",
        gzip.compress(b"a,b\n1,") + gzip.compress(b"2\n"),
        {"a": ["1"], "b": ["2"]},
    ),
    ("zst.csv.zst", zstd(PLAIN), COLUMNS),
    ("utf16.tsv.gz", gzip.compress(PLAIN.replace(",", "\t").encode("utf-16")), COLUMNS),
    ("semicolon.csv", PLAIN.replace(",", ";"), COLUMNS),
    ("tab.tsv", PLAIN.replace(",", "\t"), COLUMNS),
    (
        "commas_in_texts.tsv",
        "a\tb\n" + "x, y, z\t1\n" * 3 + "x, y\t2\n",
        {"a": ["x, y, z"] * 3 + ["x, y"], "b": ["1"] * 3 + ["2"]},
    ),
    (
        "as_many_commas_as_tabs.tsv",
        "a,b,c\td\n" + "x,y,z\t1\n" * 3,
        {"a,b,c": ["x,y,z"] * 3, "d": ["1"] * 3},
    ),
    ("pipe.txt", PLAIN.replace(",", "|"), COLUMNS),
    ("comma.txt", PLAIN, COLUMNS),
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
    (
        "quoted_header.csv",
        '"a","b"\n"x,1\ny","1"\n',
        {"a": ["x,1\ny"], "b": ["1"]},
    ),
    (
        "quotes_elsewhere.csv",
        'a,b\n"x, z",1\n"x,1\ny",1\n',
        {"a": ["x, z", "x,1\ny"], "b": ["1", "1"]},
    ),
    (
        "stray_quote.csv",
        'a,b\n"x,1\n' + "x,1\n" * 50_000,
        {"a": ['"x'] + ["x"] * 50_000, "b": ["1"] * 50_001},
    ),
    (
        "unquoted.tsv",
        'a\tb\n"x\t1\ny\t0\nz"\t1\n',
        {"a": ['"x', "y", 'z"'], "b": ["1", "0", "1"]},
    ),
    (
        "unquoted_in_the_last_column.tsv",
        'a\tb\n1\t"x\n2\ty\n3\tz"\n',
        {"a": ["1", "2", "3"], "b": ['"x', "y", 'z"']},
    ),
    (
        "unquoted.csv",
        'a,b\n"x" y,1\n"z,0\nz",1\n',
        {"a": ['"x" y', '"z', 'z"'], "b": ["1", "0", "1"]},
    ),
    (
        "many_unquoted_rows.csv",
        'a,b\n"x,1\n' + "x,1\n" * 9 + 'x",0\n',
        {"a": ['"x', *["x"] * 9, 'x"'], "b": ["1"] * 10 + ["0"]},
    ),
    (
        "lines_with_one_comma_each.csv",
        'a,b\n"' + "x, and y\n" * 6 + 'x, and y",1\n',
        {"a": ["x, and y\n" * 6 + "x, and y"], "b": ["1"]},
    ),
    (
        "lines_that_end_with_a_semicolon.csv",
        'a;b\n"x;\n""y""";1\n',
        {"a": ['x;\n"y"'], "b": ["1"]},
    ),
    (
        "a_letter.csv",
        'a,b\nx,1\n"Hello, Bob\nBye",1\n',
        {"a": ["x", "Hello, Bob\nBye"], "b": ["1", "1"]},
    ),
    ("lines_in_one_column.csv", 'a\nx\n"x\ny"\n', {"a": ["x", "x\ny"]}),
    ("unquoted_in_one_column.csv", 'a\nx "q"\n"x\ny"\n', {"a": ['x "q"', '"x', 'y"']}),
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
    ("long_field.csv", f'a,b\n"{LONG_CELL}",1\nx,2\n', {"a": [LONG_CELL, "x"], "b": ["1", "2"]}),
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
    ("lists.jsonl", '{"a": ["x"]}\n{"a": [1.0, true, "y"]}', {"a": ['["x"]', '[1.0, true, "y"]']}),
    (
        "ragged_late.jsonl",
        '{"a": 1}\n' * 10_000 + '{"b": 2}',
        {"a": ["1"] * 10_000 + [None], "b": [None] * 10_000 + ["2"]},
    ),
    ("utf16.jsonl", '{"a": "গান"}'.encode("utf-16"), {"a": ["গান"]}),
    ("line_separator.jsonl", '{"a": "x\u2028y\x85z"}', {"a": ["x\u2028y\x85z"]}),
    ("lines.json.gz", gzip.compress(b'{"a": 1}\n{"a": 2}\n'), {"a": ["1", "2"]}),
    ("array.json", json.dumps([{"a": 1}, {"a": "x"}], indent=1), {"a": ["1", "x"]}),
    *(
        (f"{encoding}.parquet", encoded_parquet(encoding), {"a": ["x", "xy", None]})
        for encoding in ("PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY")
    ),
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
            nested=[[[1]], [[2]]],
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
            "left": ["[1]", "[2]"],
        },
    ),
]

UNREADABLE = [  # name, content or None for no file, beginning of the error
    ("none.csv", None, "there is no such file"),
    ("empty.csv", "", "that file is empty"),
    ("blank.csv", "\n\n  \n".replace(" ", ""), "it has no rows"),
    ("nothing.csv.gz", gzip.compress(b""), "it has no rows"),
    ("header_only.csv", "a,b\n", "it has no rows"),
    (
        "duplicates.csv",
        "a, a,b,b\n1,2,3,4",
        "its header names a, b more than once; give --no_header if",
    ),
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
        "stray_quote_in_a_quoted_file.csv",
        'a,b\n"x, y",1\n"x,1\n' + "x,1\n" * 50_000,
        "line 3 has a quote that is never closed",
    ),
    (
        "cell_or_rows.csv",
        'a,b\nx,1\n"x,1\ny",1\n',
        "line 3 may be the start of one quoted cell of 2 lines, or a row; quote all cells",
    ),
    (
        "long_cell_in_a_quoted_file.csv",
        'a,b\n"x, y",1\n"x,1\n' + "x,1\n" * 5 + 'y",1\n',
        "line 3 may be the start of one quoted cell of 7 lines, or a row; quote all cells",
    ),
    (
        "cell_or_rows_beside_quotes_in_cells.csv",
        'a,b\n"x, y",1\nx "y",1\n"x,1\ny",1\n',
        "line 4 may be the start of one quoted cell of 2 lines, or a row, and line 3 has a quote "
        "within a cell",
    ),
    (
        "unquoted_row_of_three_cells.tsv",
        'a\tb\n"x\t1\ny\tz\t1\nx"\t1\n',
        "line 2 may be the start of one quoted cell of 3 lines, or a row, and line 3 has not as "
        "many tabs as the header",
    ),
    (
        "damaged_row_between_stray_quotes.csv",
        'a,b\n"x,1\n' + "x,1\n" * 9 + "x,1,2\n" + 'x",0\n',
        "line 2 may be the start of one quoted cell of 12 lines, or a row; quote all cells",
    ),
    (
        "one_malformed_row_of_a_quoted_file.csv",
        'a;b\n"x";"1"\n"y";"0"\n"z" said Bob";"1"\n',
        "line 4 has text after a closing quote",
    ),
    (
        "one_malformed_row_below_quoted_texts.tsv",
        'a\tb\n"x"\t1\n"y"\t0\n"z" said Bob"\t1\n',
        "line 4 has text after a closing quote",
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
    ("nested_only.parquet", parquet(a=[[[1]]]), "its columns have no plain values: a"),
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
    ("nested.json", '[{"a": 1},\n{"a": [[1]]}]', "object 2 has a list or an object in a,"),
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
]
