"""The table of calibration: what a row is, and that each study yields rows."""

import numpy as np
import pytest

from lab.bench.__main__ import main
from lab.calibration import share, table


def test_a_row_counts_runs_not_genes():
    """The standard error of independent runs by hand; runs without a value are left out."""
    hits = np.array([[1, 1], [0, 0], [1, 0], [np.nan, np.nan], [1, np.nan]])
    row = share("x", 0.05, hits, "note")
    each = np.array([1, 0, 0.5, 1])
    assert row[:2] == ("x", 0.05) and row.measured == each.mean() and row.note == "note"
    assert row.error == pytest.approx(each.std(ddof=1) / 2)
    assert np.isnan(share("x", 0.05, np.full((3, 2), np.nan)).measured)


def test_the_table_is_the_same_for_a_seed_whatever_runs_before(capsys, monkeypatch):
    def study(runs, rng):
        yield share(f"of {runs:g}", 0.05, rng.random(50) < 0.5)
        yield share("power", np.nan, [1, 1])

    monkeypatch.setattr(table, "STUDIES", {"a": study, "b": study})
    both = [table.print_table(names, 2.0, 7) or capsys.readouterr().out for names in ((), ("b",))]
    lines = [[line for line in out.splitlines() if line.startswith("| b")] for out in both]
    assert lines[0] == lines[1] and lines[0][1] == "| b | power | – | 1.000 | 0.000 |  |"
    a, b = (next(table.rows_of(name, seed=7)).measured for name in "ab")
    assert a != b


def test_bench_prints_the_rows_of_a_study(capsys, monkeypatch):
    argv = ["bench", "calibration", "--only", "space", "--runs", "0.005"]
    monkeypatch.setattr("sys.argv", argv)
    main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| space")]
    assert len(rows) > 30 and all(line.count("|") == 7 for line in rows)
