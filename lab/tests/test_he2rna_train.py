"""lab.tests.test_he2rna_train"""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

from lab.commands.histcode import main as histcode_main
from lab.files import InputError, load_arrays, save_file
from lab.he2rna.bags import in_memory as bags_in_memory
from lab.runs import versions
from lab.tests.helpers import (
    MODELS,
    express,
    pretrain,
    read_csv,
    run_study,
    same_runs,
    study,
    swap,
    train,
    tune,
    write_bag_table,
    write_cohort,
)


def test_training_finds_what_was_planted_and_only_that(tmp_path, capsys):
    write_cohort(tmp_path, np.random.default_rng(0), patients=60)
    assert train(tmp_path, "--epochs", "60", "--lr", "3e-3", "--batch", "8") == 0
    run = tmp_path / "runs" / "he2rna"
    with open(run / "genes.csv") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 12 and {r["n"] for r in rows} == {"30"}
    for r in rows:
        assert (
            (float(r["R"]) > 0.75 and r["significant_hs"] == "1")
            if r["gene"] in ("G0", "G1", "G2")
            else r["significant_hs"] == "0"
        )
    z = np.load(run / "predictions.npz")  # the table again, from the saved predictions, by SciPy
    for r in rows:
        g, fold_r = list(z["genes"]).index(r["gene"]), []
        for f in range(3):
            at = (z["project"] == r["project"]) & (z["fold"] == f)
            fold_r.append(scipy.stats.pearsonr(z["prediction"][at, g], z["truth"][at, g])[0])
        assert [float(r[f"R_fold{f}"]) for f in range(3)] == pytest.approx(fold_r, abs=1e-5)
        t = np.mean(fold_r) * math.sqrt(28 / (1 - np.mean(fold_r) ** 2))
        assert float(r["R"]) == pytest.approx(np.mean(fold_r), abs=1e-5) and float(
            r["p_t"]
        ) == pytest.approx(scipy.stats.t.sf(t, 28), rel=1e-3)
    with open(run / "folds.csv") as f:
        folds = list(csv.DictReader(f))
    assert (
        all(r["test_fold"] not in r["validates_folds"].split() for r in folds)
        and len({r["slide"] for r in folds}) == 60
    )
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {e["fold"] for e in log} == {0, 1, 2} and log[-1]["loss"] < log[0]["loss"]
    report = (run / "report.md").read_text()
    assert (
        "seed: 0" in report
        and all(f"{package}: {version}" in report for package, version in versions().items())
        and (run / "scatter.png").stat().st_size > 10000
    )
    saved = torch.load(run / "fold0.pt", weights_only=True)
    assert saved["genes"] == [f"G{g}" for g in range(6)] and set(saved["test_patients"]) == {
        r["patient"] for r in folds if r["test_fold"] == "0"
    }
    assert "at most" in capsys.readouterr().out


def test_without_validation_patients_the_last_epoch_is_kept(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(8))
    assert (
        train(tmp_path, "--epochs", "4", "--valid", "0") == 0
        and tune(tmp_path, "--project", "Y", "--epochs", "3") == 0
    )
    for name, epochs in (("he2rna", 4), ("he2rna-Y-finetuned", 3)):
        run = tmp_path / "runs" / name
        assert {r["validates_folds"] for r in read_csv(run / "folds.csv")} == {""}
        for f in range(3):
            note = torch.load(run / f"fold{f}.pt", weights_only=True)["note"]
            assert (
                note["best_epoch"] == note["epochs"] == epochs
                and "none: the last" in (run / "report.md").read_text()
            )


def test_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    assert train(tmp_path, "--epochs", "5", "--name", "whole") == 0
    original, calls = save_file, [0]
    for fatal in (2, 3, 5, 4, 6, 2):  # after the first state, between states, at a fold's end

        def save(path, write):
            calls[0] += 1
            if calls[0] == fatal:
                raise KeyboardInterrupt
            original(path, write)

        calls[0] = 0
        swap(monkeypatch, "lab.files", "save_file", save)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "--epochs", "5", "--name", "cut")
    swap(monkeypatch, "lab.files", "save_file", original)
    assert train(tmp_path, "--epochs", "5", "--name", "cut", "--workers", "3") == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    assert (
        train(tmp_path, "--epochs", "5", "--name", "cut") == 0
    )  # a finished run is only reported again
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")
    with pytest.raises(InputError, match="epochs 5 -> 6.*--name"):
        train(tmp_path, "--epochs", "6", "--name", "cut")
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob("*.state.pt"))


def test_a_loss_that_is_not_finite_stops_with_the_slide_and_keeps_the_epoch_before(
    tmp_path, monkeypatch
):
    write_cohort(tmp_path, np.random.default_rng(1))
    argv = ("--epochs", "3", "--batch", "1")
    assert train(tmp_path, *argv, "--name", "whole") == 0
    whole, seen = bags_in_memory, []

    def in_memory(x, mask):
        def bags(rows):
            one, m = whole(x, mask)(rows)
            seen.append(int(rows[0]))
            wrong = seen.count(seen[-1]) == 2 and seen[-1] == odd
            return one * float("nan") if wrong else one, m

        return bags

    odd = int(
        np.flatnonzero(
            [
                r["test_fold"] != "0" and r["validates_folds"].split() != ["0"]
                for r in read_csv(tmp_path / "runs" / "whole" / "folds.csv")
            ]
        )[0]
    )
    swap(
        monkeypatch, "lab.he2rna.bags", "in_memory", in_memory
    )  # one slide goes wrong when it is seen again, in epoch 2
    with pytest.raises(
        InputError,
        match=rf"fold 0 epoch 2: loss .* at the slides s{odd:02d}_0; .*fold0.state.pt keeps epoch 1; a lower --lr",
    ):
        train(tmp_path, *argv, "--name", "cut")
    assert torch.load(tmp_path / "runs" / "cut" / "fold0.state.pt", weights_only=True)["epoch"] == 1
    swap(monkeypatch, "lab.he2rna.bags", "in_memory", whole)
    assert train(tmp_path, *argv, "--name", "cut") == 0
    same_runs(tmp_path / "runs" / "whole", tmp_path / "runs" / "cut")


def test_padding_and_relu_change_nothing_where_all_scores_are_positive(tmp_path):
    """Genes far above 0, the last bias at their mean: neither a zero nor a ReLU has a say, in trained or untrained models."""
    write_cohort(tmp_path, np.random.default_rng(4), patients=24)
    for name, argv in (("a", ()), ("b", ("--code", "padding,relu"))):
        assert train(tmp_path, "--epochs", "3", "--name", name, *argv) == 0
    a, b = (np.load(tmp_path / "runs" / name / "predictions.npz")["prediction"] for name in "ab")
    assert np.allclose(a, b, atol=1e-4) and a.min() > 0.5
    a, b = (np.load(tmp_path / "runs" / name / "null.npz") for name in "ab")
    assert all(np.allclose(a[k], b[k], atol=1e-3) for k in "XY") and np.isfinite(a["X"]).all()


def numbers_of(run):
    """All that a run has learned and predicted, as one row of numbers: its checkpoints' tensors and predictions.npz, or MSI's AUCs."""
    if (run / "results.csv").is_file():
        return np.array([float(r["auc"]) for r in read_csv(run / "results.csv")])
    paths, z = (
        sorted(run.glob("state.pt")) or sorted(run.glob("*.pt")),
        load_arrays(run / "predictions.npz") or {},
    )  # pretraining: its state
    tensors = [
        v
        for p in paths
        for one in [torch.load(p, weights_only=True)]
        for part in (one["model"], one)
        for v in part.values()
        if torch.is_tensor(v)
    ]
    return np.concatenate(
        [v.double().numpy().ravel() for v in tensors]
        + [z[k].ravel() for k in ("prediction", "predicted_label") if k in z]
    )


@pytest.mark.parametrize(
    "command, module, name",
    [
        ("train", "lab.fast.topk", "BLOCK_SCORES"),
        ("msi", "lab.fast.networks", "MSI_BLOCK"),
        ("expression", "lab.histcode.expression", "GENES_AT_ONCE"),
        ("diagnose", "lab.histcode.training", "BAGS_AT_ONCE"),
        ("pretrain", None, None),
    ],
)
def test_the_seed_decides_and_blocks_do_not(
    changed, unlabelled, tmp_path, monkeypatch, small, command, module, name
):
    """Blocks of one gene, network or bag, of all at once, and the usual ones: the same weights and predictions to 2e-6 (5e-7 was found; MSI's AUCs
    exactly). The same seed gives the same again, bit for bit; another seed others."""
    monkeypatch.chdir(tmp_path)
    write_cohort(tmp_path / "c", np.random.default_rng(0)), write_bag_table(tmp_path / "toy.csv")
    shutil.copytree(changed, tmp_path / "p", ignore=shutil.ignore_patterns("runs"))
    (
        swap(monkeypatch, "lab.histcode.expression_report", "write_report", lambda *_: None),
        swap(monkeypatch, "lab.commands.histcode.diagnose", "write_diagnosis", lambda *_: None),
    )
    swap(monkeypatch, "lab.he2rna.msi_report", "write_msi_report", lambda *_: None)
    go = {
        "train": lambda run, *argv: train(
            tmp_path / "c", "--epochs", "2", "--null-models", "1", "--name", run, *argv
        ),
        "msi": lambda run, *argv: run_study(
            tmp_path,
            study(np.random.default_rng(0)),
            "--splits",
            "1",
            "--ratios",
            "1/2",
            "--repeats",
            "1",
            *argv,
            name=run,
        ),
        "expression": lambda run, *argv: express(
            tmp_path / "p", "--name", run, *MODELS["per-gene"], *argv
        ),
        "diagnose": lambda run, *argv: histcode_main(
            [
                *"diagnose --bags toy.csv --repeats 1 --folds 3 --epochs 3 --lr .01 --device cpu".split(),
                "--name",
                run,
                *argv,
            ]
        ),
        "pretrain": lambda run, *argv: pretrain(
            unlabelled, "--epochs", "1", "--tiles-per-slide", "1", "--name", f"{run}-seed", *argv
        ),
    }[command]
    folder = {"train": tmp_path / "c" / "runs", "expression": tmp_path / "p" / "runs"}.get(
        command, tmp_path
    )

    def numbers(run, *argv):
        go(run, *argv)
        return numbers_of(
            unlabelled / "runs" / f"{run}-seed" if command == "pretrain" else folder / run
        )

    usual, seeded = numbers("usual"), numbers("other", "--seed", "1")
    assert (
        len(usual) >= 15
        and usual.shape == seeded.shape
        and np.abs(usual - seeded).max() > 0.01
        and (usual == numbers("again")).all()
    )
    for i, block in enumerate((1, 2**40) if name else ()):
        sizes = {"MSI_BLOCK": dict(cpu=block), "GENES_AT_ONCE": min(block, 16)}
        swap(monkeypatch, module, name, sizes.get(name, block))
        assert np.abs(numbers(f"block{i}") - usual).max() <= (0 if command == "msi" else 2e-6)


def test_half_written_leftovers(tmp_path):
    """What a full disk or a power cut can leave: a half log line, a half checkpoint, no config."""
    write_cohort(tmp_path, np.random.default_rng(2))
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, "--epochs", "2") == 0
    with open(run / "log.jsonl", "a") as f:
        f.write('{"fold": 2, "ep')
    (run / "fold2.pt").unlink()
    assert train(tmp_path, "--epochs", "2") == 0
    (run / "fold1.pt").write_bytes((run / "fold1.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match="fold1.pt: not a whole checkpoint"):
        train(tmp_path, "--epochs", "2")
    (run / "config.json").unlink()
    with pytest.raises(InputError, match="no config.json"):
        train(tmp_path, "--epochs", "2")
