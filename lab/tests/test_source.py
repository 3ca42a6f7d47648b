"""The source as text: the Pythons that pyproject.toml allows compile it."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.tests.helpers import ROOT

PACKAGES = {  # of a module
    "PIL": "pillow",
    "openslide": "openslide-python",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
}
TOO_NEW = (
    "x = a[*b]",
    "with (open(p) as f, open(q) as g):\n    pass\ntype A = int",
    "f'{a['b']}'",
)


def lowest_python():
    """(3, 10) of requires-python = ">=3.10"."""
    required = re.search(
        r'requires-python = ">=(\d+)\.(\d+)"', (ROOT / "pyproject.toml").read_text()
    )
    return int(required[1]), int(required[2])


def sources():
    return [*ROOT.glob("*.py"), *(ROOT / "lab").rglob("*.py")]


def interpreter(version):
    """That Python, on the path or where pyenv keeps it; None where there is none that runs."""
    name = "python{}.{}".format(*version)
    kept = Path.home().glob(f".pyenv/versions/{version[0]}.{version[1]}.*/bin/{name}")
    for python in [shutil.which(name), *sorted(kept)]:
        if python and subprocess.run([python, "-V"], capture_output=True).returncode == 0:
            return python
    return None


def test_the_lowest_python_parses_every_file():
    version = lowest_python()
    for path in sources():
        ast.parse(path.read_text(), str(path), feature_version=version)


def test_all_that_is_imported_at_once_is_required():
    """A fresh environment has every package, and no comparison is skipped for want of one."""
    required = (ROOT / "requirements.txt").read_text().lower()
    ours = {"conftest", "test_all", "tiling", "stats", "he2rna", "histcode", "lab"}
    names = set()
    for path in sources():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    for name in {name.split(".")[0] for name in names} - ours - sys.stdlib_module_names:
        assert re.search(rf"^{PACKAGES.get(name, name).lower()}[>=]", required, re.M), name


def test_the_lowest_python_compiles_every_file(tmp_path):
    """Its own compiler refuses what `ast` of a newer one lets through: a[*b], quotes inside an
    f-string.
    """
    python = interpreter(lowest_python())
    if python is None:
        pytest.skip("Python {}.{} is not installed".format(*lowest_python()))
    program = "import sys\nfor path in sys.argv[1:]:\n    compile(open(path).read(), path, 'exec')"

    def compiled(*paths):
        done = subprocess.run([python, "-c", program, *paths], capture_output=True, text=True)
        return done.stderr

    assert compiled(*sources()) == ""
    for i, text in enumerate(TOO_NEW):
        odd = tmp_path / f"odd{i}.py"
        odd.write_text(text)
        assert "SyntaxError" in compiled(odd)
