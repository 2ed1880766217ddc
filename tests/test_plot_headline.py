"""The plot of README.md: its rows are those of docs/benchmarks.md, and the committed file is
current."""

from benchmarks import plot_headline
from benchmarks.plot_headline import Row, read_rows

PAGE = """
<!-- benchmark: English -->
| recipe, form | MB | smaller | ms | faster | vs teacher (points) |
|---|--:|--:|--:|--:|--:|
| **small, onnx-int8** | 5.40 | 16.9x | 0.54 | 17.6x | -0.62 [-2.9, +1.7] |
| teacher, torch fp32 * | 91.58 | 1.0x | 9.41 | 1.0x | +0.00 [+0.0, +0.0] |
<!-- end -->
<!-- benchmark: Bangla -->
| of another data set |
<!-- end -->
"""


def test_rows_are_read_without_the_marks_of_the_table():
    assert read_rows(PAGE, "English") == {
        "small, onnx-int8": Row("small, onnx-int8", 5.4, 17.6, -0.62, -2.9, 1.7),
        "teacher, torch fp32": Row("teacher, torch fp32", 91.58, 1.0, 0.0, 0.0, 0.0),
    }


def test_the_plot_is_drawn_from_the_current_table(tmp_path, monkeypatch):
    committed = plot_headline.PLOT.read_bytes()
    monkeypatch.setattr(plot_headline, "PLOT", tmp_path / "headline.svg")
    plot_headline.main([])
    assert plot_headline.PLOT.read_bytes() == committed
