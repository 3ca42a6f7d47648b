"""Every step of every program, killed at random moments, goes on to the files of one that was left
alone.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import tiling
from lab.tests.helpers import ROOT, read_csv, tiny_encoder
from lab.tests.helpers_he2rna import study
from lab.tests.helpers_histcode import write_pairs

SIGNALS = {
    signal.SIGINT: (130, "interrupted; the same command goes on from here"),
    signal.SIGTERM: (143, "terminated; the same command goes on from here"),
    signal.SIGKILL: (-9, ""),
}
PROGRESS = r"^.+: [\d,]+/[\d,]+ .* left\s*$"
TIMES = (  # what two runs may write differently
    r"\b\d+:\d\d:\d\d\b"
    r"|(?<=_per_s\": )[\d.]+|(?<=seconds\": )[\d.]+"
    r"|(?<=processes\": )\d|(?<=processes: )\d"
)


class Nursery:
    """Commands in processes of their own, without the seconds of importing (nursery.py)."""

    def __init__(self, errors):
        self.errors = errors
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lab.tests.nursery", str(errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    def run(self, program, argv, delay=None, number=0, processes=1):
        """-> (exit status, seconds, stderr without progress lines)."""
        job = json.dumps([program, argv, delay, int(number), processes])
        print(job, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the nursery has died; its last words are above"
        status, seconds = json.loads(answer)
        lines = self.errors.read_text().splitlines()
        said = [line for line in lines if line and not re.search(PROGRESS, line)]
        return status, seconds, "\n".join(said)

    def close(self):
        self.process.stdin.close()
        return self.process.wait()


def contents(path, cohort):
    """A file's bytes; of a run's log, settings and report what they say, without times, rates, the
    number of processes and the cohort's folder.
    """
    if path.name not in ("log.jsonl", "config.json", "report.md", "report.html"):
        return path.read_bytes().replace(str(cohort).encode(), b"")
    text = re.sub(TIMES, "", path.read_text().replace(str(cohort), ""))
    return set(text.splitlines()) if path.name == "log.jsonl" else text


def files_of(cohort):
    return {p.relative_to(cohort): p for p in cohort.rglob("[!.]*") if p.is_file()}


def assert_same_files(mine, whole, without=()):
    """Both cohorts have the same files; a line of a log may have been lost, none is another."""
    a_files, b_files = files_of(mine), files_of(whole)
    b_files = {k: v for k, v in b_files.items() if not set(without) & set(k.parts)}
    assert a_files.keys() == b_files.keys(), a_files.keys() ^ b_files.keys()
    for name in a_files:
        a, b = contents(a_files[name], mine), contents(b_files[name], whole)
        same = a <= b if name.name == "log.jsonl" else a == b
        assert same, name


def left_behind(cohort):
    """Half files, and locks that say whose they are. Nobody holds predict/ nor the folder of
    probe's table: there SIGKILL may leave a hidden half file, which nothing reads.
    """
    halves = [p for p in cohort.rglob(".*.tmp") if p.parent.name not in ("predict", cohort.name)]
    return halves + [p for p in cohort.rglob("*lock*") if p.read_text()]


def stop_often(nursery, cut, program, argv, seconds, usual, rng):
    """Run a step into SIGINT, SIGTERM and twice SIGKILL at random moments, then undisturbed -> how
    often each hit.
    """
    numbers = [*SIGNALS, signal.SIGKILL]  # SIGKILL last: its lock stays for the next
    hits = dict.fromkeys(SIGNALS, 0)
    for number in numbers:
        delay = seconds * rng.uniform(0.02, 1.6 / len(numbers))
        status, _, said = nursery.run(program, argv, delay, number)
        assert (status, said) in ((0, usual), SIGNALS[number]), (argv, number, status, said)
        assert number == signal.SIGKILL or not left_behind(cut), (argv, number)
        hits[number] += status == SIGNALS[number][0]
        for lock in cut.rglob("*lock*"):
            os.utime(lock, (0, 0))  # an empty lock is believed stale after a minute
    status, _, said = nursery.run(program, argv)
    assert (status, said) == (0, usual), argv
    return hits


def steps_of(folder, slide):
    """(program, argv, processes that share it; 0: not in the shared cohort), argv with {cohort} and
    {workers}.
    """
    common = "--device cpu --workers {workers}"
    tiny = f"--encoder {folder}/tiny.pt --precision float32 --max-tiles 6"
    learn = "--hidden 64 --folds 3 --epochs 5 --valid .25 --null-models 1"
    tune = "--epochs 3 --genes CD3D,CD3E --null-models 1"
    study = "--splits 2 --ratios 1/2 --arms transcriptome,direct --repeats 1 --device cpu"
    bags = "--features {cohort}/pairs/h5 --folds 3 --hidden 4 --epochs 6"
    views = "--tile-px 32 --view-px 32 --batch 4 --tiles-per-slide 1 --precision float32"
    adco, table = "{cohort}/runs/adco/adco.pt", "{cohort}/probe.csv"
    lines = (
        ("tiling", 2, f"supertiles {{cohort}} {common} {tiny}"),
        ("he2rna", 2, f"train {{cohort}} {common} {tiny} {learn}"),
        ("he2rna", 2, f"finetune {{cohort}} he2rna {tune} {common}"),
        ("he2rna", 1, f"predict {{cohort}}/runs/he2rna all {common}"),
        (
            "he2rna",
            1,
            f"heatmap {{cohort}}/runs/he2rna {slide} --genes CD3D {common} "
            f"--weights {folder}/tiny.pt",
        ),
        ("he2rna", 2, f"msi {folder}/study.npz --name {{cohort}}/msi {study}"),
        ("histcode", 2, f"diagnose {{cohort}}/pairs {common} {bags} --rotate"),
        ("histcode", 2, f"expression {{cohort}}/pairs {common} {bags}"),
        (  # two processes: the same to rounding only
            "histcode",
            0,
            f"pretrain {{cohort}} {common} {views} --epochs 3 --weights {folder}/start.pth",
        ),
        ("histcode", 0, f"probe {{cohort}} {adco} --csv {table} --tiles-per-slide 4 {common}"),
    )
    return [(program, line.split(), processes) for program, processes, line in lines]


def filled(argv, cohort, workers):
    return [word.format(cohort=cohort, workers=workers) for word in argv]


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_killed_anywhere_every_step_goes_on_to_the_same_files(drawn, tmp_path):
    """Each step runs undisturbed in `whole` with 4 workers; in `cut` with one, where it is stopped
    four times; and in `shared` by two processes: every file is the same. SIGINT and SIGTERM end
    with their status and one line.
    """
    tiny_encoder(tmp_path / "tiny.pt")
    write_pairs(tmp_path / "pairs")
    np.savez(tmp_path / "study.npz", **study(np.random.default_rng(0)))
    torch.save(tiling.ResNet50(3).state_dict(), tmp_path / "start.pth")
    whole, cut, shared = (tmp_path / name for name in ("whole", "cut", "shared"))
    for cohort in (whole, cut, shared):
        shutil.copytree(drawn, cohort)
        shutil.copytree(tmp_path / "pairs", cohort / "pairs")

    nursery, rng = Nursery(tmp_path / "errors"), np.random.default_rng(0)
    steps = steps_of(tmp_path, read_csv(drawn / "samples.csv")[0]["slide"])
    stopped = dict.fromkeys(SIGNALS, 0)
    for program, argv, processes in steps:
        status, seconds, usual = nursery.run(program, filled(argv, whole, 4))
        assert status == 0, (argv, usual)
        if processes:
            status, _, said = nursery.run(program, filled(argv, shared, 1), processes=processes)
            assert status == 0, (argv, said)
        hits = stop_often(nursery, cut, program, filled(argv, cut, 1), seconds, usual, rng)
        stopped = {number: stopped[number] + hits[number] for number in SIGNALS}
    assert nursery.close() == 0
    assert not left_behind(cut) and not list(cut.rglob("*.state.pt"))
    assert_same_files(cut, whole)
    assert_same_files(shared, whole, without=("adco", "probe.csv"))
    assert sum(stopped.values()) >= 2 * len(steps), stopped  # of four for each step
    assert min(stopped.values()) >= len(steps) / 2, stopped
