"""lab.findings: all that was found is said at once, and what can't be meant ends a command."""

import pytest

from lab.files import InputError
from lab.findings import Findings


def refused():
    raise InputError("a.csv: row 2 is empty")


def test_a_single_refusal_is_its_own_line_and_several_are_a_list(capsys):
    found = Findings()
    assert found.of(int, "7") == 7
    found.tell("cohort")  # nothing found, nothing said
    found.warn("p1 and P1 differ in capitals alone")
    assert found.of(refused) is None
    with pytest.raises(InputError, match=r"^a\.csv: row 2 is empty$"):
        found.tell("cohort")
    found.refuse("b.csv: no column slide")
    with pytest.raises(InputError, match=r"^cohort: the 2 findings above"):
        found.tell("cohort")
    said = capsys.readouterr()
    assert said.out == "warning: p1 and P1 differ in capitals alone\n"  # once
    assert said.err == "- a.csv: row 2 is empty\n- b.csv: no column slide\n"
