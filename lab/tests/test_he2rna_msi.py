"""python he2rna.py msi: its study, its divisions and its report."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import scipy.stats
import torch

import he2rna
import lab.he2rna.msi
from lab.commands.he2rna import main
from lab.commands.he2rna import msi as verb
from lab.fast.networks import train_networks
from lab.files import InputError
from lab.he2rna.msi import compare_arms
from lab.he2rna.msi_report import HEADER, Aucs, draw_arms, draw_shares, summary, verdicts
from lab.he2rna.msi_study import Study, study_of_file
from lab.tests.helpers import read_csv, real, texts
from lab.tests.helpers_he2rna import run_study, study, write_cohort

ARMS = tuple(he2rna.MSI_ARMS)
CPU = torch.device("cpu")


def as_study(z):
    """A study of an .npz's arrays."""
    return Study(
        x=z["features"],
        y=z["expression"].clip(0),
        labels=z["msi"],
        patients=z["patients"],
        projects=np.full(len(z["msi"]), "all"),
        hospital=None,
        features=None,
    )


def options(*code):
    return SimpleNamespace(code=code, folds=3, repeats=2, seed=0)


# ----- A division ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code, kinds",
    [
        ((), set()),
        (("scaling",), {"x"}),
        (("autoencoder",), set()),
        (("genes",), {"y"}),
    ],
)
def test_nothing_learns_from_test_patients_unless_the_authors_choice_says_so(
    monkeypatch, small, code, kinds
):
    """What every network sees of its own rows, before and after others are changed beyond
    recognition.
    """
    d = as_study(study(np.random.default_rng(0)))
    d.y[:, 3] = np.where(np.arange(45) % 9 < 5, 1, 0)  # near the median's threshold
    in_a = he2rna.hospital_a(d.high, 0.6, np.random.default_rng(5))
    seen = {}

    def spy(recipe, lessons, pool, device):
        for i, lesson in enumerate(lessons):
            x, target = lesson.arrays()
            key = (recipe.sizes, len(lessons), i)
            seen[key] = (lesson.rows, x[lesson.rows].copy(), target[lesson.rows].copy())
        return train_networks(recipe, lessons, pool, device)

    monkeypatch.setattr(lab.he2rna.msi, "train_networks", spy)
    compare_arms(d, in_a, ARMS, options(*code), (0,), CPU)
    before, changed = dict(seen), set()
    for kind, value in (("x", 9), ("y", 5)):
        for patient in np.flatnonzero(~in_a)[:4]:
            kept = getattr(d, kind)
            other = kept.copy()
            other[patient] = value
            setattr(d, kind, other)
            seen.clear()
            compare_arms(d, in_a, ARMS, options(*code), (0,), CPU)
            setattr(d, kind, kept)
            for key, (rows, *arrays) in before.items():
                first = key[0][0] == 24  # a later network may be given a code that learned from him
                same = key in seen and all(map(np.array_equal, arrays, seen[key][1:]))
                if first and patient not in rows and not same:
                    changed.add(kind)
    whole_b = [
        rows
        for (sizes, *_), (rows, *_) in before.items()
        if len(sizes) == 5 and {*np.flatnonzero(~in_a)} <= {*rows}
    ]
    assert changed == kinds
    assert len(whole_b) == ("autoencoder" in code)  # one of all of B, test patients too


def test_the_ledger_says_whom_each_step_learned_from(small):
    d = as_study(study(np.random.default_rng(0)))
    in_a = he2rna.hospital_a(d.high, 0.6, np.random.default_rng(5))
    _, note = compare_arms(d, in_a, ARMS, options(), (0,), CPU)
    rows = {step: (patients, tests) for step, patients, tests, _ in note["saw"]}
    assert note["leaks"] == []
    assert {rows[step] for step in ("gene filter", "networks of A", "autoencoder A")} == {
        ("27", "0 of 6")
    }
    assert rows["autoencoder B"] == rows["classifiers"] == ("12", "0 of 6")
    _, note = compare_arms(d, in_a, ARMS, options("autoencoder"), (0,), CPU)
    assert set(note["leaks"]) == {"autoencoder B", "scaling of autoencoder B"}
    _, note = compare_arms(d, in_a, ("direct",), options("scaling"), (0,), CPU)
    assert note["leaks"] == ["scaling of classifiers"]


def test_arms_side_by_side_are_those_of_the_plain_networks(small):
    d = as_study(study(np.random.default_rng(3), slides=2))
    in_a = np.isin(d.patients, np.unique(d.patients)[::2])
    aucs, _ = compare_arms(d, in_a, ARMS, options(), (0,), CPU)
    b = np.flatnonzero(~in_a)
    names, first, patient = np.unique(d.patients[b], return_index=True, return_inverse=True)
    high = d.high[b][first]
    tests = he2rna.folds_in_b(names, high, [0, 0], 3, 2)
    plain = he2rna.Hospitals(d.x, d.y, d.high, [], [b[~test[patient]] for test in tests], [0, 0])
    scores = he2rna.direct_arm(plain)[:, :, b]
    wanted = he2rna.fold_aucs(scores, patient, high, tests).reshape(2, 3)
    assert np.allclose(aucs["direct"], wanted)


# ----- The run ------------------------------------------------------------------------------------


@pytest.fixture
def divisions(monkeypatch):
    """Keys of the divisions that were made; interrupted in the third, once."""
    keys = []

    def spied(study, in_a, arms, o, key, device):
        keys.append(key)
        if len(keys) == 3:
            raise KeyboardInterrupt
        return compare_arms(study, in_a, arms, o, key, device)

    monkeypatch.setattr(verb, "compare_arms", spied)
    return keys


def test_a_run_goes_on_and_is_extended(tmp_path, small, divisions):
    z = study(np.random.default_rng(1))
    words = ("--splits", "2", "--ratios", "1/3,1/2", "--repeats", "2")
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, z, *words)
    assert len(read_csv(tmp_path / "run" / "results.csv")) == 2 * 5 * 6
    assert run_study(tmp_path, z, *words) == 0
    assert len(divisions) == 3 + 2  # the two that were missing, no more
    assert run_study(tmp_path, z, *words, name="whole") == 0
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = read_csv(tmp_path / "run" / "results.csv")
    assert tuple(rows[0]) == verb.HEADER
    assert len(rows) == 2 * 2 * 5 * 2 * 3
    assert {(r["ratio"], r["patients_b"]) for r in rows} == {("1/3", "30"), ("1/2", "23")}

    divisions.clear()
    more = ("--splits", "3", "--ratios", "1/2", "--repeats", "2", "--arms", "direct,transcriptome")
    run_study(tmp_path, z, *more)
    extended = read_csv(tmp_path / "run" / "results.csv")
    assert [split for split, *_ in divisions] == [2]
    assert [r for r in extended if r["split"] != "2"] == rows
    assert len(extended) == len(rows) + 2 * 6
    with pytest.raises(InputError, match=r"other settings.*code"):
        run_study(tmp_path, z, *words, "--follow", "code")
    with open(tmp_path / "run" / "results.csv", "a") as f:
        f.write("x,1/2,direct,0,0,.5,9,3\n")
    with pytest.raises(InputError, match=r"x,1/2,direct.* is no row of ours"):
        run_study(tmp_path, z, *words)


def test_the_report_is_of_the_results(tmp_path, small, capsys):
    z = study(np.random.default_rng(1))
    run_study(tmp_path, z, "--splits", "2", "--ratios", "1/3,1/2", "--repeats", "2")
    folder = tmp_path / "run"
    files = "arms.png arms.svg config.json log.jsonl report.html report.md results.csv shares.png "
    files += "shares.svg table.csv"
    assert " ".join(sorted(f.name for f in folder.iterdir())) == files
    rows = [r for r in read_csv(folder / "results.csv") if r["ratio"] == "1/2"]
    each = []
    for split in "01":
        own = [r for r in rows if (r["split"], r["arm"]) == (split, "direct")]
        each.append(np.mean([float(r["auc"]) for r in own]))
    (row,) = (
        r for r in read_csv(folder / "table.csv") if (r["ratio"], r["arm"]) == ("1/2", "direct")
    )
    assert float(row["auc"]) == pytest.approx(np.mean(each), abs=1e-4)
    assert float(row["sd"]) == pytest.approx(np.std(each, ddof=1), abs=1e-4)
    report = (folder / "report.md").read_text()
    assert f"{(z['msi'] == 'MSI-H').sum()} MSI-H" in report
    (table,) = (part for part in report.split("\n\n") if part.startswith("| ratio |"))
    assert table in capsys.readouterr().out


def splits_of(gain, noise, n=13):
    """results.csv of n splits; the level is shared, and split 0 lacks the transcriptome."""
    rng, results = np.random.default_rng(0), {}
    for split in range(n):
        level = 0.5 + rng.normal(0, 0.1)
        auc = {"transcriptome": level, "direct": level - gain + rng.normal(0, noise)}
        for arm in auc if split else ["direct"]:
            results[split, "1/2", arm] = [[split, "1/2", arm, 0, 0, auc[arm], 30, 6]]
    return Aucs(results, 60)


def test_arms_are_compared_over_the_splits_that_both_have():
    """Authorities: scipy's exact Wilcoxon test; the corrected t with half of the patients in B."""
    aucs = splits_of(0.03, 0.005)
    own, other = aucs.against("1/2", "direct")
    assert len(own) == len(other) == 12
    row = dict(zip(HEADER, list(summary(aucs))[1], strict=True))
    wilcoxon = scipy.stats.wilcoxon(own, other, method="exact").pvalue
    assert float(row["p_splits"]) == pytest.approx(wilcoxon, rel=1e-2) and wilcoxon < 0.001
    error = np.sqrt((1 / 12 + 1) * (other - own).var(ddof=1))
    t = scipy.stats.t(11, (other - own).mean(), error)
    low, high = t.interval(0.95)
    assert (float(row["low_95"]), float(row["high_95"])) == pytest.approx((low, high), abs=1e-4)
    assert float(row["p"]) == pytest.approx(2 * t.cdf(0), rel=1e-2)


@pytest.mark.parametrize(
    "gain, noise, said",
    [(0.03, 0.005, "better at 1/2"), (-0.03, 0.005, "worse"), (0.01, 0.01, "not told apart")],
)
def test_the_verdict_is_the_intervals_not_the_splits(gain, noise, said):
    aucs = splits_of(gain, noise)
    (verdict,) = verdicts(aucs)
    assert said in verdict
    assert he2rna.arms_p(*aucs.against("1/2", "direct")) < 0.05  # of the splits in all of these


def test_hospitals_drawn_blind_to_msi_have_uneven_shares_of_it():
    """Even ones have 6 of 12 MSI-H; blind ones what is left after a draw of 30 of 60."""
    high, o = np.arange(60) < 12, SimpleNamespace(code=["draw"], folds=3)
    draws = [verb.drawn_a(high, 1 / 2, np.random.default_rng(s), o) for s in range(200)]
    in_b = np.array([np.count_nonzero(high & ~in_a) for in_a in draws])
    assert {in_a.sum() for in_a in draws} == {30} and in_b.min() >= 3
    chance = scipy.stats.hypergeom(60, 12, 30)
    assert in_b.mean() == pytest.approx(chance.mean(), abs=0.4)
    assert in_b.std() == pytest.approx(chance.std(), abs=0.3)
    o.code = []
    assert np.count_nonzero(high & verb.drawn_a(high, 1 / 2, np.random.default_rng(0), o)) == 6


@pytest.mark.parametrize("scale", [1, 1e4])
def test_logarithms_are_told_from_linear_expression(tmp_path, scale):
    z = study(np.random.default_rng(0))
    z["expression"] = np.abs(z["expression"]) * np.float32(scale)
    np.savez(tmp_path / "z.npz", **z)
    o = SimpleNamespace(
        study=tmp_path / "z.npz", types=None, project=None, features=None, scale=None
    )
    wanted = z["expression"] if scale == 1 else np.log10(1 + z["expression"])
    assert np.allclose(study_of_file(o).y, wanted)


# ----- The study ----------------------------------------------------------------------------------


def test_given_hospitals_need_only_what_they_use(tmp_path, small):
    z = study(np.random.default_rng(2))
    z["hospital"] = np.where(np.arange(45) < 20, "A", "B")
    z["expression"][20:] = np.nan
    z["msi"][:20] = ""
    assert run_study(tmp_path, z, "--splits", "2", "--repeats", "1") == 0
    rows = read_csv(tmp_path / "run" / "results.csv")
    assert {(r["ratio"], r["patients_b"]) for r in rows} == {("given", "25")}
    report = (tmp_path / "run" / "report.md").read_text()
    assert "one division, whose splits only draw folds" in report
    assert {r["p"] for r in read_csv(tmp_path / "run" / "table.csv")} == {""}
    assert len(rows) == 2 * 5 * 3
    with pytest.raises(InputError, match=r"--ratios: not where .* each patient's hospital"):
        run_study(tmp_path, z, "--ratios", "1/2", name="other")
    z["hospital"] = np.where(np.arange(45) < 21, "A", "B")
    z["expression"][20], z["msi"][20] = 1, "MSS"
    with pytest.raises(InputError, match=r"other settings.*data"):
        run_study(tmp_path, z, "--splits", "2", "--repeats", "1")


def spoil(**change):
    """A study with some arrays replaced: by a function of them, or of the study's dict if new."""
    z = study(np.random.default_rng(0))
    for name, value in change.items():
        z[name] = value(z[name]) if callable(value) else value
    return {name: array for name, array in z.items() if array is not None}


ROWS = np.arange(45)
FEW_HIGH = np.where(ROWS < 4, "MSI-H", "MSS")


def same_patient(v):
    return np.where(ROWS < 4, v[0], v)


def nan_in_7(v):
    return np.where(ROWS[:, None] == 7, np.nan, v)


def inf_in_8(v):
    return np.where((ROWS[:, None] == 8) & (np.arange(20) == 3), np.inf, v)


@pytest.mark.parametrize(
    "change, argv, words",
    [
        (
            {"msi": lambda v: np.where(v == "MSI-L", "MSI low", v)},
            (),
            "label MSI low: wanted is MSI-H",
        ),
        (
            {"msi": np.where(ROWS < 2, "MSI-H", "MSS")},
            (),
            "2 MSI-H and 43 other patients .*; --folds 3 needs as many",
        ),
        ({"msi": np.full(45, "MSS")}, (), "0 MSI-H and 45 other"),
        ({"msi": FEW_HIGH}, ("--ratios", "1/2,3/4"), "1/2 in A leaves B 2 MSI-H and 2. other"),
        ({"msi": np.where(ROWS < 40, "Indeterminate", "MSI-H")}, (), "5 MSI-H and 0 other"),
        (
            {"msi": FEW_HIGH, "hospital": np.where(ROWS < 4, "B", "A")},
            (),
            "4 MSI-H and 0 other patients for hospital B",
        ),
        (
            {
                "patients": same_patient,
                "hospital": np.where(ROWS % 2, "A", "B"),
                "msi": np.where(ROWS < 4, "MSS", "MSI-H"),
            },
            (),
            "1 of 42 patients are of hospital two kinds: P000",
        ),
        (
            {"patients": same_patient, "msi": np.where(ROWS < 2, "MSI-H", "MSS")},
            (),
            "1 of 42 patients are labelled two kinds: P000",
        ),
        ({"hospital": np.full(45, "C")}, (), "hospital: C in 45 rows"),
        ({"features": nan_in_7}, (), "of 1 rows are NaN .*, the first of patient P007"),
        ({"expression": inf_in_8}, (), "features or expression of 1 rows.*P008"),
        (
            {"expression": lambda v: v[:, :5]},
            (),
            r"it has .*expression \(45, 5\) of float32",
        ),
        ({"features": lambda v: v.astype(str)}, (), r"features \(45, 24\) of <U"),
        ({"features": lambda v: v[:, :0]}, (), r"features \(45, 0\) of float32"),
        ({"genes": np.array("G")}, (), r"genes \(\) of <U1"),
        ({"patients": np.array("P")}, (), r"patients \(\) of <U1"),
        ({"msi": None}, (), r"and msi \(n,\); it has features"),
        ({}, ("--folds", "1"), "--folds 1: must be at least 2"),
        ({}, ("--project", "COAD"), "--project: only with a cohort folder; .*npz is all the data"),
        ({}, ("--code", "few-tiles"), "few-tiles: .*npz holds mean features, and no tiles"),
        ({}, ("--mpp", ".5", "--encoder", "resnet50-stage3"), "^--mpp, --encoder: only with"),
        ({"expression": lambda v: v * 0 - 3}, (), "no gene is expressed"),
    ],
)
def test_mistakes_of_a_study_are_told_with_counts(tmp_path, small, change, argv, words):
    with pytest.raises(InputError, match=words) as e:
        run_study(tmp_path, spoil(**change), *argv)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run" / "results.csv").exists()


@pytest.mark.parametrize("argv", [("--ratios", "1/0"), ("--splits", "0"), ("--arms", "x")])
def test_numbers_that_cannot_be_meant(tmp_path, argv):
    with pytest.raises(SystemExit):
        run_study(tmp_path, study(np.random.default_rng(0)), *argv)


def test_a_cohort_gives_mean_features_and_drops_what_has_no_label(
    tmp_path, small, capsys, monkeypatch
):
    write_cohort(tmp_path, np.random.default_rng(0), patients=24, per_patient=2)
    header, *lines = (tmp_path / "samples.csv").read_text().split()
    label_of = {f"p{i:02d}": "msi-h" if i % 3 == 0 else "MSS" for i in range(24)}
    label_of["p03"] = "Indeterminate"
    labelled = [f"{line},{label_of[line.split(',')[1]]}" for line in lines]
    (tmp_path / "samples.csv").write_text("\n".join([f"{header},msi", *labelled]) + "\n")
    seen = []

    def spied(study, *more):
        seen.append(study)
        return compare_arms(study, *more)

    monkeypatch.setattr(verb, "compare_arms", spied)
    words = ["msi", str(tmp_path), "--features", str(tmp_path / "h5"), "--splits", "1"]
    words += ["--ratios", "1/3", "--repeats", "1", "--device", "cpu"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert (
        "23 patients, 46 slides; 23 may be in hospital B: 7 MSI-H; negative: MSI-L 0, MSS 16"
        in said
    )
    assert "dropped: 2 slides" in said
    with h5py.File(tmp_path / "h5" / "s05_1.h5") as h:
        mean = h["features"][()].astype(float).mean(0)
    assert np.abs(seen[0].x - mean).max(1).min() < 1e-5
    assert len(seen[0].x) == 46
    assert seen[0].y.max() < 10  # log10 of FPKM-UQ
    assert (tmp_path / "runs" / "msi" / "report.md").is_file()
    with pytest.raises(InputError, match="--code few-tiles leaves no slide"):
        main([*words, "--name", "few", "--code", "few-tiles"])
    monkeypatch.setattr("lab.he2rna.msi_study.FEW_TILES", 1)
    with pytest.raises(InputError, match=r"other settings.*code"):
        main([*words, "--code", "few-tiles"])
    (tmp_path / "samples.csv").write_text("\n".join([header, *lines]) + "\n")
    with pytest.raises(InputError, match="no column msi"):
        main(words)


def test_the_representation_helps_on_real_expression_and_labels(tmp_path):
    """Real MSI status and expression of 306 patients, features simulated from expression
    programmes: B is a quarter.
    """
    words = ["msi", str(real("msi", "coadread_semisynthetic.npz")), "--name", str(tmp_path / "run")]
    words += ["--splits", "1", "--ratios", "3/4", "--repeats", "1", "--device", "cpu"]
    main([*words, "--arms", "transcriptome,direct"])
    auc = {r["arm"]: float(r["auc"]) for r in read_csv(tmp_path / "run" / "table.csv")}
    assert auc["transcriptome"] > auc["direct"] > 0.6


def test_pictures_say_how_many_splits_and_patients_and_which_p(figures):
    rng = np.random.default_rng(0)
    results = {}
    for ratio, in_b in (("1/2", "30"), ("3/4", "15")):
        for split in range(6):
            for arm in ("transcriptome", "direct"):
                auc = str(rng.uniform(0.6, 0.9))
                results[split, ratio, arm] = [["", "", "", "", "", auc, in_b, "4"]]
    aucs = Aucs(results, 60)
    draw_shares("shares.png", aucs, ["SIMULATED cohort"])
    draw_arms("arms.png", aucs, ["SIMULATED cohort"])
    shares, arms = (fig.axes[0] for fig in figures)
    assert "transcriptome of A, mean of 6 splits" in texts(shares) and "chance" in texts(shares)
    assert "transcriptome of A, 68 % of the splits" in texts(shares)
    ticks = [tick.get_text() for tick in shares.get_xticklabels()]
    assert ticks == ["1/2\n30\n(4)", "1/4\n15\n(4)"]
    assert arms.get_ylim() == (0, 1.02)
    assert figures[1].get_suptitle().replace("\n", " ").endswith("3/4 of the patients in A")
    own, other = aucs.against("3/4", "direct")
    p = f"p over splits = {he2rna.arms_p(other, own):.2g}"
    assert [text.get_text().split("\n")[1] for text in arms.texts] == [p]
    assert all("60 patients" in fig.get_suptitle() for fig in figures)
    assert all("SIMULATED cohort" in texts(fig) for fig in figures)
