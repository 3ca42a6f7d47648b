"""A run of HE2RNA: trained, interrupted and gone on with, its nulls, its bags, its seed."""

import json
import math
import shutil

import numpy as np
import pytest
import scipy.stats
import torch

import he2rna
import stats
from lab.cohort.features import load_features
from lab.commands.he2rna.train import DECOY_DRAW
from lab.commands.histcode import main as histcode
from lab.files import InputError, load_arrays, save_file
from lab.he2rna.bags import from_disk, in_memory, load_bags, read_ahead
from lab.he2rna.training import model_of_choices, projects_that_choose
from lab.runs import versions
from lab.tests.helpers import read_csv, swap
from lab.tests.helpers_he2rna import run_study, same_runs, study, train, tune, write_cohort
from lab.tests.helpers_histcode import MODELS, express, pretrain, write_bag_table


def test_training_finds_what_was_planted_and_only_that(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0), patients=60)
    assert train(tmp_path, "--epochs", "60", "--lr", "3e-3", "--batch", "8") == 0
    run = tmp_path / "runs" / "he2rna"
    rows = read_csv(run / "genes.csv")
    assert len(rows) == 12
    for row in rows:
        if row["gene"] in ("G0", "G1", "G2"):
            assert float(row["R"]) > 0.7
            assert row["significant_hs"] == "1"
        else:
            assert row["significant_hs"] == "0"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert {entry["fold"] for entry in log} == {0, 1, 2}
    assert log[-1]["loss"] < log[0]["loss"]
    report = (run / "report.md").read_text()
    assert "| seed | 0 |" in report
    for package, version in versions().items():
        assert f"| {package} | {version} |" in report
    assert (run / "scatter.svg").stat().st_size > 10000


def test_genes_csv_is_the_predictions_judged_by_scipy(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(0), patients=60)
    assert train(tmp_path, "--epochs", "2") == 0
    run = tmp_path / "runs" / "he2rna"
    z = np.load(run / "predictions.npz")
    for row in read_csv(run / "genes.csv"):
        g = z["genes"].tolist().index(row["gene"])
        folds = []
        for f in range(3):
            at = (z["project"] == row["project"]) & (z["fold"] == f)
            folds.append(scipy.stats.pearsonr(z["prediction"][at, g], z["truth"][at, g])[0])
            assert float(row[f"R_fold{f}"]) == pytest.approx(folds[f], abs=1e-5)
        r = np.mean(folds)
        t = r * math.sqrt(28 / (1 - r * r))
        assert row["n"] == "30"
        assert float(row["R"]) == pytest.approx(r, abs=1e-5)
        assert float(row["p_t"]) == pytest.approx(scipy.stats.t.sf(t, 28), rel=1e-3)
    folds = read_csv(run / "folds.csv")
    assert len({row["slide"] for row in folds}) == 60
    assert all(row["test_fold"] not in row["validates_folds"].split() for row in folds)
    saved = torch.load(run / "fold0.pt", weights_only=True)
    assert saved["genes"] == [f"G{g}" for g in range(6)]
    tested = {row["patient"] for row in folds if row["test_fold"] == "0"}
    assert set(saved["test_patients"]) == tested


def test_without_validation_patients_the_last_epoch_is_kept(tmp_path):
    write_cohort(tmp_path, np.random.default_rng(8))
    assert train(tmp_path, "--epochs", "4", "--valid", "0") == 0
    assert tune(tmp_path, "--project", "Y", "--epochs", "3") == 0
    for name, epochs in (("he2rna", 4), ("he2rna-Y-finetuned", 3)):
        run = tmp_path / "runs" / name
        assert {row["validates_folds"] for row in read_csv(run / "folds.csv")} == {""}
        assert "none: the last" in (run / "report.md").read_text()
        for f in range(3):
            note = torch.load(run / f"fold{f}.pt", weights_only=True)["note"]
            assert note["best_epoch"] == note["epochs"] == epochs


# ----- Interrupted -------------------------------------------------------------------------------


def test_interrupted_training_ends_as_one_that_was_not(tmp_path, monkeypatch):
    """Cut after the first state, between states, at a fold's end; then finished, then reported."""
    write_cohort(tmp_path, np.random.default_rng(1), patients=30)
    whole, cut = (tmp_path / "runs" / name for name in ("whole", "cut"))
    argv = "--epochs", "9", "--patience", "2", "--lr", "1e-2"
    assert train(tmp_path, *argv, "--name", "whole") == 0
    notes = [torch.load(whole / f"fold{f}.pt", weights_only=True)["note"] for f in range(3)]
    assert any(note["best_epoch"] + 2 == note["epochs"] < 9 for note in notes)  # of patience
    original = save_file
    for fatal in (2, 3, 5, 4, 6, 2):
        written = []

        def save(path, write, fatal=fatal, written=written):
            written.append(path)
            if len(written) == fatal:
                raise KeyboardInterrupt
            original(path, write)

        with monkeypatch.context() as patched:
            swap(patched, "lab.files", "save_file", save)
            with pytest.raises(KeyboardInterrupt):
                train(tmp_path, *argv, "--name", "cut")
    for more in (("--workers", "3"), ()):
        assert train(tmp_path, *argv, "--name", "cut", *more) == 0
        same_runs(whole, cut)
    with pytest.raises(InputError, match=r"epochs 9 -> 6.*--name"):
        train(tmp_path, *argv, "--epochs", "6", "--name", "cut")
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob("*.state.pt"))


def test_a_loss_that_is_not_finite_names_the_slide_and_keeps_the_epoch_before(
    tmp_path, monkeypatch
):
    """A slide that fold 0 learns from holds no numbers when it is seen again, in epoch 2."""
    write_cohort(tmp_path, np.random.default_rng(1))
    argv = ("--epochs", "3", "--batch", "1")
    assert train(tmp_path, *argv, "--name", "whole") == 0
    whole, cut = (tmp_path / "runs" / name for name in ("whole", "cut"))
    learned = []
    for i, row in enumerate(read_csv(whole / "folds.csv")):
        if row["test_fold"] != "0" and row["validates_folds"] != "0":
            learned.append(i)
    odd = learned[0]
    seen = []
    original = in_memory

    def going_wrong(x, mask):
        bags = original(x, mask)

        def wrong(rows):
            seen.extend(rows.tolist())
            x, mask = bags(rows)
            if rows.tolist() == [odd] and seen.count(odd) == 2:
                x = x * math.nan
            return x, mask

        return wrong

    with monkeypatch.context() as patched:
        swap(patched, "lab.he2rna.bags", "in_memory", going_wrong)
        with pytest.raises(InputError) as caught:
            train(tmp_path, *argv, "--name", "cut")
    assert (
        f"fold 0 epoch 2: loss or weights are not finite any more, at the slides s{odd:02d}_0"
        in str(caught.value)
    )
    assert "fold0.state.pt keeps epoch 1; a lower --lr" in str(caught.value)
    assert torch.load(cut / "fold0.state.pt", weights_only=True)["epoch"] == 1
    assert train(tmp_path, *argv, "--name", "cut") == 0
    same_runs(whole, cut)


def test_half_written_leftovers(tmp_path):
    """What a full disk or a power cut can leave: a half log line, a half checkpoint, no config."""
    write_cohort(tmp_path, np.random.default_rng(2))
    run = tmp_path / "runs" / "he2rna"
    assert train(tmp_path, "--epochs", "2") == 0
    log = (run / "log.jsonl").read_text()
    with open(run / "log.jsonl", "a") as f:
        f.write('{"fold": 2, "ep')
    (run / "fold2.pt").unlink()
    assert train(tmp_path, "--epochs", "2") == 0
    assert (run / "log.jsonl").read_text() == log
    (run / "fold1.pt").write_bytes((run / "fold1.pt").read_bytes()[:1000])
    with pytest.raises(InputError, match=r"fold1.pt: not a whole checkpoint"):
        train(tmp_path, "--epochs", "2")
    (run / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config.json"):
        train(tmp_path, "--epochs", "2")


# ----- Choices and nulls -------------------------------------------------------------------------


def test_the_epoch_is_chosen_by_merged_cancers_where_the_code_is_followed():
    projects = np.array(["TCGA-LUAD", "LUSC", "TCGA-KIRC", "SIM-X"])
    assert (projects_that_choose(projects, []) == projects).all()
    merged = projects_that_choose(projects, ["subtypes"]).tolist()
    assert merged == ["LUNG", "LUNG", "KIDN", "SIM-X"]


def test_choices_are_arguments_of_the_model():
    plain = model_of_choices(6, 4, (5,))
    assert plain.head is not None
    assert (plain.one_k_per_gene, plain.relu) == (False, False)
    other = model_of_choices(6, 4, (5,), code=("padding", "relu", "k"), pad_to=12)
    assert other.head is None
    assert (other.one_k_per_gene, other.relu) == (True, True)
    scores = torch.tensor([-1.0, -2, -3])[None, :, None]
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert other.pool(scores, mask, 2).item() == 0
    assert model_of_choices(6, 4, (5,), code=("padding",), pad_to=3).pool(scores, mask, 2) == -1.5


def test_padding_and_relu_change_nothing_where_all_scores_are_positive(tmp_path):
    """Genes far above 0, the last bias at their mean: no zero has a say, trained or untrained."""
    write_cohort(tmp_path, np.random.default_rng(4), patients=24)
    for name, argv in (("a", ()), ("b", ("--code", "padding,relu"))):
        assert train(tmp_path, "--epochs", "3", "--name", name, *argv) == 0
    a, b = (np.load(tmp_path / "runs" / name / "predictions.npz")["prediction"] for name in "ab")
    assert np.allclose(a, b, atol=1e-4)
    assert a.min() > 0.5
    a, b = (np.load(tmp_path / "runs" / name / "null.npz") for name in "ab")
    assert a["cancers"].tolist() == ["X", "Y"]
    assert np.isfinite(a["r"]).all()
    assert np.allclose(a["r"], b["r"], atol=1e-3)


def test_the_nulls_of_a_run(tmp_path):
    """--null changes what decides, and nothing is trained or drawn again for it."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=40, genes=40)
    run = tmp_path / "runs" / "he2rna"
    argv = ("--epochs", "2", "--null-models", "2")
    for null in ("untrained", "t", "permutation", "decoys"):
        assert train(tmp_path, *argv, "--null", null) == 0
        rows = read_csv(run / "genes.csv")
        for project in "XY":
            part = [row for row in rows if row["project"] == project]
            p = np.array([float(row[f"p_{null}"]) for row in part])
            corrected = [float(row["p_holm_sidak"]) for row in part]
            assert corrected == pytest.approx(stats.holm_sidak(p), rel=1e-4)
        assert f"under the {null} null" in (run / "report.md").read_text()
    drawn = (run / "null.npz").stat().st_mtime_ns
    assert train(tmp_path, *argv) == 0
    assert (run / "null.npz").stat().st_mtime_ns == drawn
    assert train(tmp_path, "--epochs", "2", "--null-models", "1") == 0
    assert (run / "null.npz").stat().st_mtime_ns != drawn


def test_decoys_are_learned_beside_the_genes_and_leave_with_the_run(tmp_path):
    """Drawn again from the seed, judged again from their predictions; fold*.pt has genes alone."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=40, genes=55, per_patient=2)
    assert train(tmp_path, "--epochs", "2", "--decoys", "60") == 0
    run = tmp_path / "runs" / "he2rna"
    z, d = np.load(run / "predictions.npz"), np.load(run / "decoys.npz")
    assert d["truth"].shape == d["prediction"].shape == (80, 60)
    who = z["patient"], z["project"]
    again = he2rna.draw_decoys(z["truth"], *who, 60, [0, DECOY_DRAW])
    assert (d["truth"] == again).all()
    r = he2rna.r_of_cancers(d["prediction"], again, z["fold"], z["project"], 3)
    assert d["cancers"].tolist() == list(r)
    assert d["r"] == pytest.approx(np.array(list(r.values())))
    for row in read_csv(run / "genes.csv"):
        assert (row["n"], row["slides"]) == ("20", "40")
        p = stats.null_p(float(row["R"]), *stats.null_fit(r[row["project"]]))
        assert float(row["p_decoys"]) == pytest.approx(p, rel=1e-3)
    saved = torch.load(run / "fold0.pt", weights_only=True)
    assert saved["model"]["layers.2.weight"].shape == (55, 16)
    assert saved["decoys"]["weight"].shape == (60, 16)

    assert tune(tmp_path, "--genes", "G0,G3", "--project", "Y", "--decoys", "55") == 0
    tuned = np.load(tmp_path / "runs" / "he2rna-Y-finetuned" / "decoys.npz")
    rows = [d["slide"].tolist().index(slide) for slide in tuned["slide"]]
    assert (tuned["truth"] == d["truth"][rows, :55]).all()
    header = read_csv(tmp_path / "runs" / "he2rna-Y-finetuned" / "genes.csv")[0]
    assert "p_decoys" in header
    for argv, why in (("61", "has 60"), ("20", "too few"), ("0", "--null untrained")):
        with pytest.raises(InputError, match=why):
            tune(tmp_path, "--decoys", argv)


def test_without_decoys_another_null_decides(tmp_path):
    """The genes start, and draw k and dropout, as they do beside decoys."""
    write_cohort(tmp_path, np.random.default_rng(3), genes=5)
    with pytest.raises(InputError, match="--decoys 0 leaves no decoys"):
        train(tmp_path, "--decoys", "0")
    assert train(tmp_path, "--epochs", "1", "--decoys", "0", "--null", "t") == 0
    run = tmp_path / "runs" / "he2rna"
    assert "p_decoys" not in read_csv(run / "genes.csv")[0]
    assert not (run / "decoys.npz").exists()
    with pytest.raises(InputError, match="trained without decoys: --null"):
        tune(tmp_path)


def test_untrained_models_judge_noise_as_chance_does(tmp_path):
    """Of the run's seed they can be drawn again: here one of them, its 25 blocks of 40 genes."""
    write_cohort(tmp_path, np.random.default_rng(3), patients=40, genes=40)
    assert train(tmp_path, "--epochs", "1", "--null-models", "2") == 0
    run = tmp_path / "runs" / "he2rna"
    z = np.load(run / "null.npz")
    null = dict(zip(z["cancers"].tolist(), z["r"]))["X"]
    assert null.shape == (2 * 25, 40)
    noise = null[:, 3:]  # genes that follow nothing
    assert abs(noise.mean()) < 0.1
    assert noise.std() == pytest.approx(1 / math.sqrt(20 - 3), rel=0.35)

    def draw(f):
        seed = np.random.default_rng([0, f, 1 + 1]).integers(2**62)  # the second model
        torch.manual_seed(int(seed))
        return he2rna.HE2RNA(8, 40 * 25, (32, 16), ks=(1, 5, 20))

    z = np.load(run / "predictions.npz")
    bags = in_memory(*load_bags(tmp_path, "h5", z["slide"].tolist()))
    again = he2rna.untrained_r(draw, bags, z["truth"], z["fold"], z["project"], 3)
    assert null[25:] == pytest.approx(again["X"], abs=1e-4)


# ----- Bags --------------------------------------------------------------------------------------


def test_bags_read_ahead_from_disk_are_what_was_written(tmp_path):
    """Ragged slides in any order, float16."""
    write_cohort(tmp_path, np.random.default_rng(2), patients=7)
    slides = [f"s{p:02d}_0" for p in range(7)]
    bags = from_disk(tmp_path, tmp_path / "h5", slides)
    parts = torch.tensor([5, 0, 6, 3, 2]).split(2)
    ahead = read_ahead("slides")
    for rows, (x, mask) in zip(parts, ahead(bags, parts), strict=True):
        for row, tiles, real in zip(rows.tolist(), x, mask, strict=True):
            features = load_features(tmp_path, tmp_path / "h5", slides[row])[0]
            assert np.array_equal(tiles[real], features)
            assert (tiles[~real] == 0).all()
    (tmp_path / "h5" / "s03_0.h5").unlink()
    with pytest.raises(InputError, match=r"s03_0.h5"):
        list(ahead(bags, torch.tensor([5, 3]).split(2)))


# ----- The seed of every command -----------------------------------------------------------------


def numbers_of(run):
    """All that a run has learned and predicted, as one row of numbers."""
    if (run / "results.csv").is_file():  # of msi
        return np.array([float(row["auc"]) for row in read_csv(run / "results.csv")])
    numbers = []
    for path in sorted(run.glob("state.pt")) or sorted(run.glob("*.pt")):
        saved = torch.load(path, weights_only=True)
        for value in [*saved["model"].values(), *saved.values()]:
            if torch.is_tensor(value):
                numbers.append(value.double().numpy().ravel())
    predicted = load_arrays(run / "predictions.npz") or {}
    for name in ("prediction", "predicted_label"):
        if name in predicted:
            numbers.append(predicted[name].ravel())
    return np.concatenate(numbers)


@pytest.fixture
def commands(changed, unlabelled, tmp_path, monkeypatch, small):
    """{command: a function of a run's name and more options that runs it, its run's folder}."""
    cohort, pairs = tmp_path / "c", tmp_path / "p"
    monkeypatch.chdir(tmp_path)
    write_cohort(cohort, np.random.default_rng(0))
    write_bag_table(tmp_path / "toy.csv")
    shutil.copytree(changed, pairs, ignore=shutil.ignore_patterns("runs"))
    z = study(np.random.default_rng(0))
    msi = ["--splits", "1", "--ratios", "1/2", "--repeats", "1"]
    bags = [
        "diagnose",
        "--bags",
        "toy.csv",
        "--repeats",
        "1",
        "--folds",
        "3",
        "--epochs",
        "3",
        "--lr",
        ".01",
        "--device",
        "cpu",
    ]

    def train_(run, *argv):
        train(cohort, "--epochs", "2", "--null-models", "1", "--name", run, *argv)
        return cohort / "runs" / run

    def msi_(run, *argv):
        run_study(tmp_path, z, *msi, *argv, name=run)
        return tmp_path / run

    def expression_(run, *argv):
        express(pairs, "--name", run, *MODELS["per-gene"], *argv)
        return pairs / "runs" / run

    def diagnose_(run, *argv):
        histcode([*bags, "--name", run, *argv])
        return tmp_path / run

    def pretrain_(run, *argv):
        name = f"{run}-seed"
        pretrain(unlabelled, "--epochs", "1", "--tiles-per-slide", "1", "--name", name, *argv)
        return unlabelled / "runs" / name

    return {
        "train": train_,
        "msi": msi_,
        "expression": expression_,
        "diagnose": diagnose_,
        "pretrain": pretrain_,
    }


@pytest.mark.parametrize("command", ["train", "msi", "expression", "diagnose", "pretrain"])
def test_the_seed_decides(commands, command):
    """The same seed gives the same, bit for bit; another seed gives something else."""
    run = commands[command]
    usual = numbers_of(run("usual"))
    assert len(usual) >= 15
    assert np.array_equal(numbers_of(run("again")), usual)
    other = numbers_of(run("other", "--seed", "1"))
    assert other.shape == usual.shape
    assert np.abs(other - usual).max() > 0.01


@pytest.mark.parametrize(
    "command, module, name, one, all_at_once, within",
    [
        ("train", "lab.fast.topk", "BLOCK_SCORES", 1, 2**40, 2e-6),
        ("msi", "lab.fast.networks", "BLOCK", {"cpu": 1}, {"cpu": 2**40}, 0),
        ("expression", "lab.histcode.expression", "PARAMETERS_AT_ONCE", 1, 2**23, 2e-6),
        ("diagnose", "lab.histcode.training", "BAGS_AT_ONCE", 1, 2**40, 2e-6),
    ],
)
def test_blocks_do_not_decide(
    commands, monkeypatch, command, module, name, one, all_at_once, within
):
    """Blocks of one gene, network or bag, and of all at once, give what the usual ones give."""
    run = commands[command]
    usual = numbers_of(run("usual"))
    for i, block in enumerate((one, all_at_once)):
        swap(monkeypatch, module, name, block)
        assert np.abs(numbers_of(run(f"block{i}")) - usual).max() <= within
