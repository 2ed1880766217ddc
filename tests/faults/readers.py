"""Faults in reading files, in `inference.py` and in what it calls."""

from faults.fault import Fault

READERS = "tests/test_readers.py"
FILES = "tests/test_file_scoring.py"
CLASSIFIER = "tests/test_classifier.py"
INFERENCE = "tests/test_inference.py"

FAULTS = (
    # Reading
    Fault(
        name="a stray quote costs the rows after it",
        file="corpus/row_formats.py",
        old="            lines.reread_after(1)\n",
        new="            pass\n",
        tests=f"{FILES} -k stray_quote",
    ),
    Fault(
        name="quotes need not be closed",
        file="corpus/row_formats.py",
        old="quoting=quoting, strict=True)",
        new="quoting=quoting)",
        tests=f"{READERS} -k pythons_csv",
    ),
    Fault(
        name="an error names the last line of the previous row",
        file="corpus/row_formats.py",
        old="        number = lines.number + 1\n",
        new="        number = lines.number\n",
        tests=f"{READERS} -k one_line",
    ),
    Fault(
        name="training skips rows with errors",
        file="corpus/readers.py",
        old="values = [checked_values(row, file) for row in rows]",
        new="values = [checked_values(row, file) for row in rows if not row.error]",
        tests=f"{READERS} -k one_line",
    ),
    Fault(
        name="damaged UTF-8 is read as cp1252",
        file="corpus/encodings.py",
        old="    if file.mark_bytes or valid > invalid:\n",
        new="    if False:\n",
        tests=f"{READERS} -k one_line",
    ),
    Fault(
        name="a stray quote swallows the rows up to the next one",
        file="corpus/input_files.py",
        old="    return layout._replace(is_quoted=is_quoted)\n",
        new="    return layout\n",
        tests=f"{FILES} -k loses_no_row",
    ),
    Fault(
        name="an unclear row is read as one cell",
        file="corpus/quoting.py",
        old="    if evidence.suspect and not is_unquoted and not evidence.is_trusted():\n",
        new="    if False:\n",
        tests=f"{READERS} -k one_line",
    ),
    Fault(
        name="an unclear row of a stream is read as one cell",
        file="corpus/quoting.py",
        old="        if not self.is_trusted():\n            raise self.refusal()\n",
        new="        pass\n",
        tests=f"{FILES} -k stream",
    ),
    Fault(
        name="rows of a table with tabs are one cell if one of them is damaged",
        file="corpus/quoting.py",
        old="            return sum(counts) >= self.width\n",
        new="            return set(counts) == {self.width - 1}\n",
        tests=f"{READERS} -k one_line",
    ),
    Fault(
        name="a row in place of the header is lost",
        file="corpus/headers.py",
        old="        if is_row_cell(name, rows.table[name]):\n",
        new="        if False:\n",
        tests="tests/test_headers.py -k refused",
    ),
    Fault(
        name="a header with a usual name is taken for a row",
        file="corpus/headers.py",
        old="    if has_usual_name or names ==",
        new="    if names ==",
        tests="tests/test_headers.py -k not_taken",
        raises="UserError",
    ),
    Fault(
        name="without a header, the first row is lost",
        file="corpus/row_formats.py",
        old="    if layout.header:\n        first = next(rows)\n",
        new="    if True:\n        first = next(rows)\n",
        tests=f"{READERS} -k without_a_header",
    ),
    Fault(
        name="texts of a dictionary count once",
        file="corpus/parquet_rows.py",
        old="            size += pc.sum(lengths.take(column.indices)).as_py() or 0\n",
        new="            size += 0\n",
        tests=f"{READERS} -k large_content",
    ),
    Fault(
        name="a compressed file may have any size",
        file="corpus/encodings.py",
        old="            if file.codec and file.max_bytes and offset > file.max_bytes:\n",
        new="            if False:\n",
        tests=f"{READERS} -k large_content",
    ),
    Fault(
        name="a pipe is not a stream",
        file="corpus/input_files.py",
        old="    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)\n",
        new="    return False\n",
        tests="tests/test_inference.py -k named_pipe",
    ),
    # Predictions of a file
    Fault(
        name="labeled rows in the order of their length",
        file="engines/classifier.py",
        old="        logits = np.concatenate(batch_logits)[original_order]\n",
        new="        logits = np.concatenate(batch_logits)\n",
        tests=f"{FILES} -k in_their_order",
    ),
    Fault(
        name="the column that the model was trained on is not read",
        file="inference.py",
        old="    if trained_on in columns:\n",
        new="    if False:\n",
        tests=f"{INFERENCE} -k trained_on",
    ),
    Fault(
        name="a changed file is served",
        file="engines/classifier.py",
        old="        if record and recorded.get(name) != hashes[name]:\n",
        new="        if False:\n",
        tests=f"{CLASSIFIER} -k changed_since",
    ),
    Fault(
        name="an added column replaces a column of the input",
        file="corpus/prediction_files.py",
        old="        names.append(free_name(name, used))\n",
        new="        names.append(name)\n",
        tests=f"{FILES} -k never_replace",
    ),
    Fault(
        name="a resumed run labels the last window twice",
        file="engines/file_scoring.py",
        old="islice(job.file.rows, progress.rows, None)",
        new="islice(job.file.rows, max(0, progress.rows - WINDOW_ROWS), None)",
        tests=f"{FILES} -k killed_run_resumes",
    ),
    Fault(
        name="a run with another option resumes",
        file="engines/file_scoring.py",
        old='        is_same = record["identity"] == identity\n',
        new="        is_same = True\n",
        tests=f"{FILES} -k after_any_change",
    ),
    Fault(
        name="a row without a text moves the predictions by one row",
        file="engines/file_scoring.py",
        old="        if not row.error:\n            added =",
        new="        if len(rows) < len(values):\n            added =",
        tests=f"{FILES} -k rows_with_errors",
    ),
    # The fastest format
    Fault(
        name="the slower of two candidates wins",
        file="engines/autoselect.py",
        old="    if second_cost < first_cost:\n",
        new="    if second_cost > first_cost:\n",
        tests=f"{CLASSIFIER} -k faster_of_two",
    ),
    Fault(
        name="a .txt file that was trained on is labeled line by line",
        file="inference.py",
        old="            return len(file.columns) > 1 and column in file.columns",
        new="            return False",
        tests="tests/test_inference.py -k trained_column",
    ),
)
