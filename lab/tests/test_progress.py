"""What long loops say, and threads that work ahead."""

import io
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.progress import Room, clock, counted, ordered_map, progress, report_failures, seldom, table
from lab.tests.helpers import read_csv

STEP = 0.6  # seconds that a job takes by the clock of these tests


def test_ordered_map_keeps_order_and_errors():
    def work(i):
        time.sleep(0.002 * (i % 3))
        return 10 // (i - 5)

    for workers in (1, 4):
        got = list(ordered_map(work, range(12), workers))
        assert [job for job, _ in got] == list(range(12))
        assert isinstance(got[5][1], ZeroDivisionError)
        assert [result for job, result in got if job != 5] == [
            10 // (i - 5) for i in range(12) if i != 5
        ]


def test_threads_share_room_and_what_needs_more_than_there_is_goes_alone():
    room, there, most, alone = Room(10), [], [], []

    def work(n):
        with room.taken(n):
            there.append(n)
            most.append(sum(there))
            alone.append(n < 10 or len(there) == 1)
            time.sleep(0.002)
            there.remove(n)
        with pytest.raises(ZeroDivisionError), room.taken(n):  # a failure gives it back
            n / 0

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, [3, 5, 2, 99, 4, 10, 1, 6] * 4))
    assert all(alone)
    assert max(n for n in most if n < 99) <= 10
    assert room.free == 10


def listen(monkeypatch, terminal):
    """stderr and stdout, a terminal or a log file, under a clock that only the test moves."""
    out = io.StringIO()
    out.now = 0.0
    out.isatty = lambda: terminal
    out.lines = lambda: out.getvalue().replace("\r", "\n").splitlines()
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(time, "time", lambda: out.now)
    monkeypatch.setattr(time, "monotonic", lambda: out.now)
    return out


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_one_line_on_a_terminal_and_a_line_a_minute_in_a_log(monkeypatch, terminal):
    said = listen(monkeypatch, terminal)
    tick = progress("tiles", 1000, "slides")
    for _ in range(1000):  # ten minutes
        said.now += STEP
        tick()
    lines = said.lines()
    assert len(lines) > 100 if terminal else 9 <= len(lines) <= 11
    assert "1,000/1,000 slides, 1.7/s, 0:00:00 left" in lines[-1]
    assert re.fullmatch(r"tiles: [\d,]+/1,000 slides, 1.7/s, 0:0\d:\d\d left *", lines[0])
    assert terminal == ("\r" in said.getvalue())


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("n, minutes", [(90, 0), (1000, 9)])
def test_a_loop_that_is_over_soon_says_nothing_in_a_log(monkeypatch, terminal, n, minutes):
    said = listen(monkeypatch, terminal)
    for _ in counted("cells", iter(range(n)), "slides", n):
        said.now += STEP
    assert len(said.lines()) > n / 10 if terminal else len(said.lines()) == minutes
    assert list(counted("cells", iter(range(n)), "slides")) == list(range(n))


@pytest.mark.parametrize("terminal", [True, False])
def test_lines_of_a_loop_are_seldom_in_a_log(monkeypatch, terminal):
    said = listen(monkeypatch, terminal)
    due = seldom()
    shown = 0
    for _ in range(1000):
        said.now += STEP
        shown += due()
    assert shown == 1000 if terminal else 10 <= shown <= 11
    assert due(last=True)


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("back", [0, 1e6])
def test_a_clock_that_stands_still_or_goes_back_stops_nothing(monkeypatch, terminal, back):
    said = listen(monkeypatch, terminal)
    tick, due = progress("tiles", 3, "slides"), seldom()
    for _ in range(3):
        said.now -= back
        tick()
        due()
    assert said.lines()[-1].startswith("tiles: 3/3 slides, ")
    assert said.lines()[-1].rstrip().endswith(" 0:00:00 left")


def test_clocks_and_tables():
    assert clock(3 * 3600 + 62.9) == "3:01:02"
    assert table(("a", "b"), [(1, "x")]) == "| a | b |\n| --- | --- |\n| 1 | x |"


def test_failures_are_said_and_listed_until_nothing_fails(tmp_path, capsys):
    failed = {"a": "broken\nfile", "b": "gone"}
    assert report_failures(failed, 5, tmp_path, (1, 3)) == 1
    assert read_csv(tmp_path / "failed-1-of-3.csv")[0] == {"slide": "a", "reason": r"broken\nfile"}
    assert capsys.readouterr().err.splitlines() == [
        r"failed: a: broken\nfile",
        "failed: b: gone",
        "2 of 5 slides failed",
    ]
    assert report_failures({"b": "gone"}, 5, tmp_path) == 1  # one process: it speaks for all
    assert [path.name for path in tmp_path.iterdir()] == ["failed.csv"]
    assert report_failures({}, 5, tmp_path) == 0 and not list(tmp_path.iterdir())
