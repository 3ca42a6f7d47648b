"""lab.tests.test_progress"""

import io
import re
import sys
import time

import pytest

from lab.progress import counted, ordered_map, progress


def test_ordered_map_keeps_order_and_errors():
    def work(i):
        time.sleep(0.002 * (i % 3))
        return 10 // (i - 5)

    for workers in (1, 4):
        got = list(ordered_map(work, range(12), workers))
        assert [j for j, _ in got] == list(range(12)) and isinstance(got[5][1], ZeroDivisionError)
        assert [r for j, r in got if j != 5] == [10 // (i - 5) for i in range(12) if i != 5]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_a_line_a_minute_in_a_log_file(monkeypatch, terminal):
    now, out = [0.0], io.StringIO()
    out.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", out)
    monkeypatch.setattr(time, "time", lambda: now[0])
    tick = progress("tiles", 1000, "slides")
    for _ in range(1000):  # .6 s each: 10 minutes
        now[0] += 0.6
        tick()
    shown = out.getvalue().replace("\r", "\n").splitlines()
    assert (
        len(shown) > 100 if terminal else 9 <= len(shown) <= 11
    ) and "1,000/1,000 slides, 1.7/s, 0:00:00 left" in shown[-1]
    assert re.fullmatch(
        r"tiles: [0-9,]+/1,000 slides, 1.7/s, 0:0[0-9]:[0-9]{2} left *", shown[0]
    ) and (terminal or "\r" not in out.getvalue())
    for n, jobs in (
        (90, iter(range(90))),
        (1000, list(range(1000))),
    ):  # of less than a minute, of ten
        out.truncate(0)
        for job in counted("cells", jobs, "slides", n if n == 90 else None):
            now[0] += 0.6
        shown = out.getvalue().strip("\0").replace("\r", "\n").splitlines()
        assert (
            job == n - 1
            and (len(shown) > n / 10 if terminal else len(shown) == (0 if n == 90 else 9))
            and (n == 90 or "/1,000 slides, 1.7/s" in shown[0])
        )
