"""The lesson's blocks run in order, in an empty folder, and leave a picture after each part."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.filterwarnings("ignore")
def test_the_blocks_of_the_lesson_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "lesson.md").read_text()
    session = {}
    for match in re.finditer(r"```python\n(.*?)```", text, re.S):
        line = text[: match.start()].count("\n") + 1
        exec(compile("\n" * line + match[1], str(DOCS / "lesson.md"), "exec"), session)
    parts = {path.name[0] for path in (tmp_path / "lesson").glob("*.png")}
    assert parts == set(re.findall(r"^## (\d)", text, re.M))
