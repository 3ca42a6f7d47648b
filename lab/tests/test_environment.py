"""How commands begin and end in odd surroundings: without heavy imports, with streams closed,
interrupted early, short of memory; and that two runs leave the same bytes.
"""

import re
import subprocess
import sys

import pytest

from lab.commands import he2rna, histcode, tiling
from lab.commands.options import all_sources, refuse_unknown
from lab.tests.helpers import ROOT, options_of

PROGRAMS = (tiling, he2rna, histcode)
HEAVY = ("torch", "numpy", "scipy", "matplotlib", "PIL", "openslide", "h5py")


def shell(words, cwd=ROOT, **more):
    """A command line of bash, in which $py is a program's path without its name."""
    line = words.replace("$py", f"{sys.executable} {ROOT}")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=cwd, **more)


# ----- The beginning ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, status, said",
    [
        ("he2rna.py --help", 0, ""),
        ("histcode.py -h", 0, ""),
        ("tiling.py", 2, "arguments are required: verb"),
        ("tiling.py tile x", 2, "invalid choice: 'tile'"),
        ("he2rna.py train x --epohcs 3", 2, r"--epohcs \(nearest: --epochs; .*train --help lists"),
        ("histcode.py pretrain --zzzz=3", 2, r"--zzzz \(python histcode.py pretrain --help"),
        ("tiling.py -v tiles x --", 2, "unrecognized arguments: -v"),
        ("he2rna.py choices", 0, ""),
        ("histcode.py choices", 0, ""),
    ],
)
def test_what_needs_no_heavy_library_imports_none(words, status, said, tmp_path):
    """They are not there to be imported."""
    for name in HEAVY if "tiles" not in words else ():
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    done = shell(f"PYTHONPATH={tmp_path} $py/{words}")
    assert done.returncode == status and bool(done.stdout) == (status == 0)
    assert re.search(said, done.stderr) and bool(done.stderr) == bool(said)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_option_of_any_verb_is_refused_as_unknown(program):
    class Refused:
        prog = "x"

        def error(self, text):
            pytest.fail(text)

    for verb in program.VERBS:
        for word in options_of(program, verb):
            starts = [word[:n] for n in range(3, len(word) + 1)]
            refuse_unknown(Refused(), verb, [*starts, f"{word}=--x", "--a b", "--", "--zzzz"])
    assert '"--epochs"' in all_sources() and "zz" + "zz" not in all_sources()
