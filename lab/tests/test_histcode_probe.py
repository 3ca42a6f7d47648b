"""lab.tests.test_histcode_probe"""

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import stats
import tiling
from lab.commands.histcode import main
from lab.files import InputError
from lab.histcode.probe import STAGES, cell_content, linear_probe
from lab.tests.helpers import pretrain, read_csv, ridge_at, study, swap, tiny_encoder, write_pairs

NURSERY = """
import json, os, signal, socket, sys, time
from lab.commands import tiling, he2rna, histcode
from lab.commands.options import run as run_command
import matplotlib.pyplot, torch._dynamo     # which torch imports with the first optimizer
begun, begins = os.pipe()
for line in sys.stdin:                 # a process, or several, for each command, without the seconds of importing and of Python's own end
    module, argv, delay, number, world = json.loads(line)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    pids = []
    while len(pids) < world and (not pids or pids[-1]):
        pids.append(os.fork())
    if not pids[-1]:
        if world > 1:                                # as torchrun sets them
            os.environ.update(RANK=str(len(pids) - 1), WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        try:
            run_command(lambda: os.write(begins, b"x") and dict(tiling=tiling, he2rna=he2rna, histcode=histcode)[module].main(argv))
        except SystemExit as end:
            os._exit(end.code)
    for _ in pids:
        os.read(begun, 1)
    start = time.time()
    if delay is not None:
        time.sleep(delay)
        os.kill(pids[0], number)
    status = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    print(json.dumps([max(status, key=abs), time.time() - start]), flush=True)
"""


def alike(a, b):
    """Two loaded checkpoints, but for the time they took."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(
            alike(a[k], b[k]) for k in a if k not in ("seconds", "config")
        )
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(alike, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def but_for_times(path, cohort):
    """What a file of a run says, without its times, rates, number of processes and the folder it lies in: a checkpoint, the set of its log's
    entries, or text."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.name not in ("log.jsonl", "config.json", "report.md"):
        return path.read_bytes().replace(str(cohort).encode(), b"")
    text = path.read_text().replace(str(cohort), "")
    text = re.sub(
        r"\b\d+:\d\d:\d\d\b|(?<=_per_s\": )[\d.]+|(?<=seconds\": )[\d.]+|(?<=processes\": )\d|(?<=processes: )\d",
        "",
        text,
    )
    return set(text.splitlines()) if path.name == "log.jsonl" else text


SIGNALS = {
    signal.SIGINT: (130, "interrupted; the same command goes on from here"),
    signal.SIGTERM: (143, "terminated; the same command goes on from here"),
    signal.SIGKILL: (-9, ""),
}


def kill_often(folder, whole, cut, steps, rounds, rng, shared=None):
    """Each step undisturbed in `whole` with 4 workers; in `cut` with one, stopped by SIGINT, SIGTERM and `rounds` times by SIGKILL at random moments, then
    undisturbed: the same files. SIGINT and SIGTERM end with their status and one line, and leave no lock and no half file. In the cohort
    `shared`, if given, by two processes, but for what is one process's; files of these steps are the same, too."""
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY, str(folder / "errors")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )

    def run(module, argv, delay=None, number=0, world=1):
        print(json.dumps([module, argv, delay, number, world]), file=nursery.stdin, flush=True)
        status, seconds = json.loads(nursery.stdout.readline())
        said = [
            line
            for line in (folder / "errors").read_text().splitlines()
            if line and not re.search(r"^.+: [\d,]+/[\d,]+ .* left\s*$", line)
        ]
        return status, seconds, "\n".join(said)

    # nobody holds predict/, nor the folder of probe's table: there SIGKILL may leave a hidden half file, which nothing reads; an empty lock is of
    # one stopped before it wrote who it is, and believed stale after a minute
    left = lambda: [
        *(p for p in cut.rglob(".*.tmp") if p.parent.name not in ("predict", cut.name)),
        *(p for p in cut.rglob("lock*") if p.read_text()),
    ]
    stopped = dict.fromkeys(SIGNALS, 0)
    for module, argv in steps:
        of = lambda cohort, workers: [a.format(cohort=cohort, workers=workers) for a in argv]
        status, seconds, usual = run(module, of(whole, 4))
        assert status == 0, (argv, usual)
        if shared:
            world = (
                0
                if argv[0] in ("pretrain", "probe")
                else 1
                if argv[0] in ("predict", "heatmap")
                else 2
            )  # pretraining: to rounding
            assert not world or run(module, of(shared, 1), world=world)[0] == 0, (
                argv,
                (folder / "errors").read_text(),
            )
        numbers = [
            *SIGNALS,
            *[signal.SIGKILL] * (rounds - 1),
        ]  # SIGKILL last: its lock stays for the next
        for number in numbers:
            status, _, said = run(
                module, of(cut, 1), seconds * rng.uniform(0.02, 1.6 / len(numbers)), number
            )
            assert (status, said) in ((0, usual), SIGNALS[number]), (argv, number, status, said)
            assert number == signal.SIGKILL or not left(), (argv, number)
            stopped[number] += status == SIGNALS[number][0]
            for lock in cut.rglob("lock*"):  # the minute is over
                os.utime(lock, (0, 0))
        assert run(module, of(cut, 1))[::2] == (0, usual), argv
    nursery.stdin.close()
    assert nursery.wait() == 0 and not [*left(), *cut.rglob("*.state.pt")]
    files = lambda cohort: {p.relative_to(cohort): p for p in cohort.rglob("[!.]*") if p.is_file()}
    for other in (cut, *([shared] if shared else ())):
        mine, theirs = (
            files(other),
            {
                k: v
                for k, v in files(whole).items()
                if other == cut or not {"adco", "probe.csv"} & set(k.parts)
            },
        )
        assert mine.keys() == theirs.keys(), mine.keys() ^ theirs.keys()
        for name in mine:
            a, b = but_for_times(mine[name], other), but_for_times(theirs[name], whole)
            assert a <= b if name.name == "log.jsonl" else alike(a, b), (
                name,
                a,
                b,
            )  # a line may have been lost, none is another
    return stopped


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_killed_anywhere_every_step_goes_on_to_the_same_files(drawn, tmp_path):
    """SIGKILL, SIGINT and SIGTERM at random moments of every step, 4 workers against one, and two processes that share the slides, folds and
    splits: every file the same, reports but for their times."""
    tiny_encoder(tmp_path / "tiny.pt")
    write_pairs(tmp_path / "pairs")
    for name in ("whole", "cut", "shared"):
        shutil.copytree(drawn, tmp_path / name)
        shutil.copytree(tmp_path / "pairs", tmp_path / name / "pairs")
    common = ["--device", "cpu", "--workers", "{workers}"]
    made = [
        "{cohort}",
        *common,
        "--encoder",
        str(tmp_path / "tiny.pt"),
        "--precision",
        "float32",
        "--max-tiles",
        "6",
    ]
    pairs = [
        "{cohort}/pairs",
        "--features",
        "{cohort}/pairs/h5",
        *common,
        "--folds",
        "3",
        "--hidden",
        "4",
    ]
    slide = read_csv(drawn / "samples.csv")[0]["slide"]
    np.savez(tmp_path / "study.npz", **study(np.random.default_rng(0)))
    torch.save(tiling.ResNet50(STAGES).state_dict(), tmp_path / "start.pth")
    steps = [
        ("tiling", ["supertiles", *made]),  # tiles and features first
        (
            "he2rna",
            [
                "train",
                *made,
                "--hidden",
                "64",
                "--folds",
                "3",
                "--epochs",
                "5",
                "--valid",
                ".25",
                "--null-models",
                "1",
            ],
        ),
        (
            "he2rna",
            [
                "finetune",
                "{cohort}",
                "he2rna",
                "--epochs",
                "3",
                "--genes",
                "CD3D,CD3E",
                "--null-models",
                "1",
                *common,
            ],
        ),
        ("he2rna", ["predict", "{cohort}/runs/he2rna", "all", *common]),
        (
            "he2rna",
            [
                "heatmap",
                "{cohort}/runs/he2rna",
                slide,
                "--genes",
                "CD3D",
                "--weights",
                str(tmp_path / "tiny.pt"),
                *common,
            ],
        ),  # of all its tiles
        (
            "he2rna",
            [
                "msi",
                str(tmp_path / "study.npz"),
                "--name",
                "{cohort}/msi",
                "--splits",
                "2",
                "--ratios",
                "1/2",
                "--arms",
                "transcriptome,direct",
                "--repeats",
                "1",
                "--device",
                "cpu",
            ],
        ),
        ("histcode", ["diagnose", *pairs, "--rotate", "--epochs", "6"]),
        ("histcode", ["expression", *pairs, "--epochs", "6"]),
        (
            "histcode",
            [
                "pretrain",
                "{cohort}",
                *common,
                "--weights",
                str(tmp_path / "start.pth"),
                "--tile-px",
                "32",
                "--view-px",
                "32",
                "--batch",
                "4",
                "--epochs",
                "3",
                "--tiles-per-slide",
                "1",
                "--precision",
                "float32",
            ],
        ),
        (
            "histcode",
            [
                "probe",
                "{cohort}",
                "{cohort}/runs/adco/adco.pt",
                "--csv",
                "{cohort}/probe.csv",
                "--tiles-per-slide",
                "4",
                *common,
            ],
        ),
    ]
    stopped = kill_often(
        tmp_path,
        tmp_path / "whole",
        tmp_path / "cut",
        steps,
        2,
        np.random.default_rng(0),
        tmp_path / "shared",
    )
    assert sum(stopped.values()) >= 2 * len(steps) and min(stopped.values()) >= len(steps) / 2, (
        stopped
    )  # of four for each step


def test_the_probe_finds_what_is_linear_and_nothing_else():
    rng = np.random.default_rng(0)
    patients = np.repeat([f"P{i}" for i in range(20)], 30)
    x = rng.normal(size=(600, 12)) + rng.normal(size=(20, 12)).repeat(30, 0) * 2
    signal = x @ rng.normal(size=12)
    y = np.stack(
        [
            signal,
            signal + signal.std() * rng.normal(size=600),
            rng.normal(size=600),
            rng.normal(size=20).repeat(30),
        ],
        1,
    )
    r2 = linear_probe(x, y, patients)
    assert (
        r2[0] > 0.999 and 0.4 < r2[1] < 0.55 and r2[2] < 0.03 and r2[3] < 0.15
    )  # a patient's own offset can't be learned from others
    who = (patients[:, None] == np.unique(patients)).astype(float) + 0.01 * rng.normal(
        size=(600, 20)
    )
    assert (
        linear_probe(who, y[:, 3:], patients)[0]
        < 0.2
        < stats.pearson(
            *[v[:, None] for v in (ridge_at(who, y[:, 3:], (1.0,), who)[0, :, 0], y[:, 3])]
        )[0]
        ** 2
    )
    order = rng.permutation(600)
    assert np.allclose(linear_probe(x[order], y[order], patients[order]), r2, atol=1e-6)


def test_cell_content_of_points_and_spots(tmp_path):
    coords, tile = np.array([[0, 0], [10, 0], [20, 0]]), 10.0
    (tmp_path / "points").mkdir(), (tmp_path / "spots").mkdir()
    (tmp_path / "points" / "a.csv").write_text("x,y,cell\n1,1,T\n2,3,T\n12,5,B\n99,99,T\n")
    with gzip.open(tmp_path / "spots" / "b.csv.gz", "wt") as f:
        f.write(
            "x,y,fraction:T,fraction:B,CD3D\n5,5,.2,.8,9\n6,6,.4,.6,9\n25,5,1,0,9\n99,9,.5,.5,1\n"
        )
    a, b = (cell_content(tmp_path, n, coords, tile, 0.5) for n in "ab")
    assert {k: v.tolist() for k, v in a.items()} == {"T": [2, 0, 0], "B": [0, 1, 0]}
    assert (
        np.allclose(b["T"], [0.3, np.nan, 1], equal_nan=True)
        and np.allclose(b["B"], [0.7, np.nan, 0], equal_nan=True)
        and len(b) == 2
    )
    assert cell_content(tmp_path, "c", coords, tile, 0.5) is None
    (tmp_path / "points" / "c.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="c.csv: no columns x and y"):
        cell_content(tmp_path, "c", coords, tile, 0.5)


def test_probe_prints_a_row_for_each_encoder(unlabelled, tmp_path, monkeypatch, capsys):
    assert pretrain(unlabelled, "--epochs", "1", "--name", "probed") == 0
    path = unlabelled / "runs" / "probed" / "probed.pt"
    capsys.readouterr()
    probe = lambda *argv: main(["probe", str(unlabelled), *argv, "--device", "cpu"])

    def quick(net, seed):  # calibrate takes seconds
        for m in net.modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                m.momentum = None
        return net.eval()

    swap(monkeypatch, "lab.encoders", "calibrate", quick)
    assert probe("random", str(path), "--csv", str(tmp_path / "t.csv")) == 0
    out = capsys.readouterr().out
    assert "36 px" in out and [r["encoder"] for r in read_csv(tmp_path / "t.csv")] == [
        "random",
        str(path),
    ]
    assert {"lymphocyte", "stroma", "tumour"} < set(read_csv(tmp_path / "t.csv")[0])
    before = {p: p.read_bytes() for p in (unlabelled / "tiles").glob("*.npz")}
    for argv, words in (
        (("--tile-um", "300"), "learned from tiles of .* --tile-um is 300"),
        (("--colour", "macenko"), "leave --colour out"),
        *(
            (("--tile-px", px), f"--tile-px {px}.*: must lie between 32 and 2048")
            for px in ("0", "-3", "10000")
        ),
        (("--tiles-per-slide", "-1"), "--tiles-per-slide -1: must lie"),
        (("--csv", str(tmp_path)), "a folder; wanted is the name"),
    ):
        with pytest.raises(InputError, match=words):
            probe(str(path), *argv)
    assert {
        p: p.read_bytes() for p in (unlabelled / "tiles").glob("*.npz")
    } == before  # and no tile was cut
    with pytest.raises(InputError, match="nowhere.pt: no such file"):
        probe("nowhere.pt")
    with pytest.raises(InputError, match="not a whole encoder file"):
        probe(str(unlabelled / "samples.csv"))
    with pytest.raises(
        InputError, match="no encoder's checkpoint|the checkpoint has no|of version"
    ):
        probe(str(unlabelled / "runs" / "probed" / "state.pt"))
