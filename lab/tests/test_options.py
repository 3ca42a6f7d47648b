"""Command lines: --help, mistakes in one line, signals, and a disk that says no."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

import lab.files as lab_files
from lab.commands import he2rna, histcode, tiling
from lab.commands.slide_options import OF_SLIDES, add_options
from lab.commands.start import run
from lab.files import InputError
from lab.tests.helpers import ROOT, fill_disk, status_of
from lab.tests.helpers_he2rna import same_runs, write_cohort

PROGRAMS = [tiling, he2rna, histcode]
NOTHING_REPLACES = ("mpp", "min_r", "at_least")  # numbers that have no default


# ----- --help -------------------------------------------------------------------------------------


def parser_of(monkeypatch, program, *verb):
    """The parser that prints a --help."""
    asked = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda p, _=None: asked.append(p))
    with pytest.raises(SystemExit):
        program.main([*verb, "--help"])
    return asked.pop()


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_every_verb_fits_two_screens_and_states_every_default(program, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert len(program.VERBS) > 5
    for verb in program.VERBS:
        parser = parser_of(monkeypatch, program, verb)
        lines = parser.format_help().splitlines()
        name = program.__name__.rpartition(".")[2]
        assert lines[0].startswith(f"usage: {name}.py {verb} [options]"), verb
        assert any(f"python {name}.py {verb}" in line for line in lines[1:]), verb
        assert len(lines) <= 100 and max(map(len, lines)) <= 100, verb
        for action in parser._actions:
            what = (verb, action.dest)
            silent = action.dest in NOTHING_REPLACES or "made elsewhere" in (action.help or "")
            silent |= action.type not in (int, float)
            free = action.nargs == 0 or (action.default in (None, []) and silent)
            assert action.help and (free or "default" in action.help), what
            if action.required and action.option_strings:
                assert f"{action.option_strings[0]} " in lines[0], what


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_of_a_program_names_every_verb(program, monkeypatch):
    text = parser_of(monkeypatch, program).format_help()
    for verb, line in program.VERBS.items():
        assert re.search(rf"^ +{verb} ", text, re.M), verb
        assert " ".join(line.split()) in " ".join(text.split()), verb


def test_every_option_of_slides_is_known_as_one():
    """Device, workers and seed have a meaning, or no effect, where no slides are read as well."""
    parser = argparse.ArgumentParser(add_help=False)
    add_options(parser)
    defined = {action.dest for action in parser._actions}
    assert defined - {"device", "workers", "seed"} == set(OF_SLIDES)


# ----- Mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "program, argv, words",
    [
        (tiling, "features x --features=", "argument --features: an empty word was given"),
        (he2rna, "predict x y --into=", "argument --into: an empty word"),
        (tiling, "tiles EMPTY", "argument cohort: an empty word"),
        (histcode, "diagnose x --external=", "argument --external: an empty word"),
        (tiling, f"tiles x --seed {2**63}", f"'{2**63}' is not a whole number >= 0 and < 2..63"),
        (tiling, "tiles x --seed -1", "--seed: expected one argument|'-1' is not a whole number"),
        (tiling, "tiles x --seed ²", "'²' is not a whole number"),
    ],
)
def test_empty_words_and_seeds_that_no_generator_takes_are_refused(capsys, program, argv, words):
    with pytest.raises(SystemExit, match="2"):
        program.main([word.replace("EMPTY", "") for word in argv.split()])
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    "argv, words",
    [
        ("tiles {}/nowhere", "nowhere"),
        ("tiles {} --tile-um -3", "--tile-um -3"),
        ("tiles {} --mpp 90", "--mpp 90"),
        ("features {} --weights {}/absent.pth", "absent.pth"),
        ("features {} --device cuda:77", "cuda:77"),
        ("supertiles {} --features {}/h5", "no such folder"),
    ],
)
def test_tiling_commands_say_one_line(two_slides, capsys, argv, words):
    status, said = status_of(capsys, tiling, *argv.format(two_slides, two_slides).split())
    assert status == 2 and len(said) == 1 and words in said[0]


@pytest.mark.parametrize(
    "argv, words",
    [
        ("nowhere", "nowhere"),
        ("{} --epochs 0", "--epochs.*0"),
        ("{} --folds 99", "--folds 12 would work"),
        ("{} --name ../x", "--name ../x"),
        ("{} --project Q", "--project Q"),
        ("{} --device cuda:9", "cuda:9"),
        ("{} --features none", "none"),
        ("{} --ks 0", "--ks"),
    ],
)
def test_train_says_one_line_and_makes_no_run(tmp_path, monkeypatch, capsys, argv, words):
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path, np.random.default_rng(0))
    status, said = status_of(capsys, he2rna, "train", *argv.format(tmp_path).split())
    assert status == 2 and re.search(words, said[-1]) and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("program", ["tiling", "he2rna", "histcode"])
def test_the_real_programs_say_one_line(tmp_path, program):
    verb = {"tiling": "tiles", "he2rna": "train", "histcode": "diagnose"}[program]
    done = subprocess.run(
        [sys.executable, ROOT / f"{program}.py", verb, "nowhere"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: .*nowhere.*\n", done.stderr)


def raises(kind, *words):
    def main():
        raise kind(*words)

    return main


def refused():
    raise InputError("a value")


def ours():
    raise KeyError("a mistake of ours")


def killed(number):
    def main():
        os.kill(os.getpid(), number)
        return 0

    return main


@pytest.mark.parametrize(
    "main, status, words",
    [
        (lambda: 0, 0, ""),
        (lambda: 1, 1, ""),
        (refused, 2, "error: a value\n"),
        (raises(MemoryError), 2, "error: not enough memory (MemoryError): smaller "),
        (raises(RuntimeError, "can't allocate memory: 9 bytes\nat"), 2, "9 bytes): smaller "),
        (raises(RuntimeError, "can't start new thread"), 2, "error: not enough memory "),
        (raises(OSError, 12, "Cannot allocate memory"), 2, "error: not enough memory "),
        (raises(BrokenPipeError), 141, ""),
        (killed(signal.SIGINT), 130, "\ninterrupted; the same command goes on from here\n"),
        (killed(signal.SIGTERM), 143, "\nterminated; the same command goes on from here\n"),
    ],
)
def test_how_a_command_ends(capsys, monkeypatch, main, status, words):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as e:
            run(lambda: main)
        with pytest.raises(KeyError, match="a mistake of ours"):
            run(lambda: ours)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    said = capsys.readouterr().err
    assert e.value.code == status and words in said and bool(words) == bool(said)
    assert len(said.strip().splitlines()) == bool(words)


# ----- Disks --------------------------------------------------------------------------------------


def test_a_folder_for_a_file_and_a_file_for_a_folder(two_slides, capsys):
    folder = two_slides / "tiles"
    (two_slides / "samples.csv").mkdir()
    wanted = "wanted is a table with the columns slide,patient,project"
    said = f"error: {two_slides}/samples.csv is a folder: {wanted}"
    assert status_of(capsys, tiling, "tiles", two_slides) == (2, [said])
    (two_slides / "samples.csv").rmdir()
    folder.write_text("in the way")
    status, said = status_of(capsys, tiling, "tiles", two_slides)
    assert status == 2 and len(said) == 1 and f"error: {folder}: " in said[0]
    folder.unlink()
    (folder / "a.npz").mkdir(parents=True)
    status, said = status_of(capsys, tiling, "tiles", two_slides)
    assert status > 0 and any(f"{folder}/a.npz" in line for line in said)


def test_what_may_not_be_read_or_written_is_named(two_slides, monkeypatch, capsys):
    """By hand: tests may run as root, whom no permission stops."""

    def refuse(path, mode="r", **more):
        for wanted, place, number in (
            ("x", "tiles", errno.EROFS),
            ("r", "samples", errno.EACCES),
        ):
            if wanted in mode and place in str(path):
                raise OSError(number, os.strerror(number), str(path))
        return open(path, mode, **more)

    monkeypatch.setattr(lab_files, "open", refuse, raising=False)
    monkeypatch.setattr(lab_files.Path, "read_bytes", lambda path: refuse(path, "rb").read())
    status, said = status_of(capsys, tiling, "tiles", two_slides)
    assert status == 2 and re.fullmatch(f"error: {two_slides}/tiles/.*: Read-only.*", said[-1])
    (two_slides / "samples.csv").write_text("slide,patient,project\na,p,X\n")
    status, said = status_of(capsys, tiling, "tiles", two_slides)
    assert status == 2 and re.fullmatch(f"error: {two_slides}/samples.csv.*Perm.*", said[0])


def test_a_full_disk_stops_a_training_that_goes_on_as_if_it_had_not(tmp_path, monkeypatch, capsys):
    write_cohort(tmp_path, np.random.default_rng(1), patients=6)
    learn = "--device cpu --hidden 8 --ks 1,5 --folds 3 --valid .25 --epochs 2 --name"
    argv = (he2rna, "train", tmp_path, "--features", tmp_path / "h5", *learn.split())
    count = fill_disk(monkeypatch, 0)
    assert status_of(capsys, *argv, "whole")[0] == 0
    assert count[0] >= 18
    for at in (1, 6, 9, 12, 18):
        fill_disk(monkeypatch, at)
        status, said = status_of(capsys, *argv, "cut")
        full = re.fullmatch(f"error: {tmp_path}/.*: No space left on device", (said or [""])[-1])
        assert status == 0 or (status == 2 and full)
    monkeypatch.undo()
    assert status_of(capsys, *argv, "cut")[0] == 0
    assert not list(tmp_path.rglob("*.tmp"))
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
