"""How commands begin and end in odd surroundings: without heavy imports, with streams closed,
interrupted early, short of memory; and that two runs leave the same bytes.
"""

import math
import os
import re
import signal
import subprocess
import sys

import pytest

from lab import threads
from lab.commands import he2rna, histcode, tiling
from lab.commands.options import quoted_words, refuse_unknown
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
        ("he2rna.py choices", 0, ""),
        ("histcode.py choices", 0, ""),
    ],
)
def test_what_needs_no_heavy_library_imports_none(words, status, said, tmp_path):
    """They are not there to be imported."""
    for name in HEAVY:
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
    assert "--epochs" in quoted_words() and "--zz" + "zz" not in quoted_words()


# ----- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, word", [(2, "interrupted"), (15, "terminated")])
def test_a_signal_while_libraries_are_imported_is_one_line(number, word, tmp_path):
    for name in ("numpy", "torch"):  # whichever a verb imports first
        wait = "import time\nprint('importing', flush=True)\ntime.sleep(60)"
        (tmp_path / f"{name}.py").write_text(wait)
    process = subprocess.Popen(
        [sys.executable, ROOT / "he2rna.py", "train", "x"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    _, said = process.communicate()
    assert said == f"\n{word}; the same command goes on from here\n"
    assert process.returncode == 128 + number


# ----- Streams, names and memory ------------------------------------------------------------------

NO_UTF8 = "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0"


@pytest.mark.parametrize(
    "words, status, said",
    [
        ("$py/he2rna.py choices >&-", 0, ""),
        ("$py/he2rna.py choices <&- >&- 2>&-", 0, ""),
        ("$py/he2rna.py trian 2>&-", 2, ""),
        ("$py/he2rna.py choices >/dev/full", 2, "error: .*No space left on device\n"),
        ("$py/he2rna.py --help >/dev/full", 2, "error: .*No space left on device\n"),
        (f"{NO_UTF8} $py/tiling.py caf$'\\xe9\\xc3\\xa9'", 2, "invalid choice: .caf.udce9é"),
        (
            "ulimit -v 700000; $py/tiling.py doctor x",
            2,
            "error: not enough memory: ulimit -v 7.*\n",
        ),
    ],
)
def test_streams_and_names_and_memory_end_no_command_in_a_traceback(words, status, said):
    done = shell(words)
    assert done.returncode == status and re.search(said, done.stderr)
    assert bool(said) == bool(done.stderr) and "Traceback" not in done.stderr


@pytest.mark.parametrize("words", ["choices", "--help", "trian"])
def test_output_that_nobody_reads_ends_a_command_as_the_shell_wants(words):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, ROOT / "he2rna.py", words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    if words == "trian":  # it says nothing on stdout
        assert done.returncode == 2
    else:
        assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


def test_no_file_takes_the_number_of_a_closed_stream():
    code = "import lab.commands.start as s, os; s.open_streams(); assert os.open('/', 0) > 2"
    assert shell(f'{sys.executable} -c "{code}" <&- >&- 2>&-').returncode == 0


# ----- Cores --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own, files, cores",
    [
        ("0::/\n", {}, None),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        ("0::/docker/of/host\n", {"cpu.max": "50000 100000\n"}, 0.5),
        (
            "5:cpu,cpuacct:/a\n1:name=systemd:/a\n",
            {"cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("3:memory:/x\n0::/\n", {"cpu.max": "no number"}, None),
    ],
)
def test_cores_are_counted_as_cgroups_and_affinity_give_them(
    own, files, cores, tmp_path, monkeypatch
):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(threads, "OWN", tmp_path / "own")
    assert threads.quota() == (cores or math.inf)
    monkeypatch.setattr(threads, "usable", lambda: 2)
    assert threads.cores() == min(2, math.ceil(cores or 2))
    monkeypatch.setattr(os, "environ", {})
    threads.settle_threads()
    assert os.environ.get("OMP_NUM_THREADS") == ("1" if cores == 0.5 else None)
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
    for own in ({"OMP_WAIT_POLICY": "active", "OMP_NUM_THREADS": "7"}, {"GOMP_SPINCOUNT": "9"}):
        monkeypatch.setattr(os, "environ", {**own, "OMP_NUM_THREADS": "7"})
        threads.settle_threads()
        assert os.environ == {**own, "OMP_NUM_THREADS": "7"}


def test_threads_wait_politely_here_too():
    assert os.environ["OMP_WAIT_POLICY"]
