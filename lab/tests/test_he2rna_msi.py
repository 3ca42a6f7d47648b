"""lab.tests.test_he2rna_msi"""

import argparse
import re
from fractions import Fraction

import h5py
import numpy as np
import pytest
import scipy.cluster
import scipy.signal
import scipy.stats
import torch

from lab.commands.he2rna import main
from lab.fast.networks import train_networks
from lab.files import InputError
from lab.he2rna.msi import compare_arms, hospital_a
from lab.he2rna.msi_report import MSI_ARMS, compare_to, verdict
from lab.he2rna.msi_study import MSI_SHARES
from lab.tests.helpers import read_csv, real, run_study, study, swap, write_cohort


def as_study(z, code=(), folds=3, repeats=2):
    d = dict(
        x=z["features"],
        y=z["expression"],
        has_y=np.ones(len(z["msi"]), bool),
        patients=z["patients"],
        high=z["msi"] == "MSI-H",
        projects=np.full(len(z["msi"]), "all"),
    )
    return d, argparse.Namespace(code=code, folds=folds, repeats=repeats, seed=0)


def test_hospital_a_is_nested_stratified_and_of_the_papers_size():
    high = np.arange(441) % 441 < 67  # MSI-H / MSI-NH .18
    before = np.zeros(441, bool)
    for share in MSI_SHARES:
        in_a = hospital_a(high, share, np.random.default_rng(1))
        assert (
            in_a.sum() == int(441 * share)
            and abs((high & in_a).sum() - 67 * share) <= 1
            and (before <= in_a).all()
        )
        before = in_a
    assert (
        hospital_a(high, Fraction(1, 6), np.random.default_rng(1)).sum() == 73
    )  # "73 - 368 patients"
    tied = np.arange(20) % 4 == 0  # 5 of 20: classes tie at the cut
    assert {
        (tied & hospital_a(tied, Fraction(1, 2), np.random.default_rng(s))).sum() for s in range(50)
    } == {3}
    draws = [hospital_a(high, 0.5, np.random.default_rng(s)) for s in range(200)]
    assert (
        0.35 < np.mean(draws, 0).min()
        and np.mean(draws, 0).max() < 0.65
        and len({d.tobytes() for d in draws}) == 200
    )


@pytest.mark.parametrize(
    "code, kinds",
    [
        ((), set()),
        (("scaling",), {"features"}),
        (("autoencoder",), set()),
        (("genes",), {"expression"}),
    ],
)
def test_nothing_learns_from_test_patients_unless_the_authors_switch_says_so(
    monkeypatch, small, code, kinds
):
    """What every network learns from, before and after the patients it is not trained on are changed beyond recognition."""
    z, seen = study(np.random.default_rng(0)), []
    z["expression"] = z["expression"].clip(0)
    z["expression"][:, 3] = np.where(np.arange(45) % 9 < 5, 1, 0)  # near the median's threshold
    plain = train_networks

    def spy(pool, sizes, activations, inputs, trains, *rest):
        for m, rows in enumerate(trains):
            seen.append((sizes, rows, *(v[rows].copy() for v in inputs(m))))
        return plain(pool, sizes, activations, inputs, trains, *rest)

    swap(monkeypatch, "lab.fast.networks", "train_networks", spy)
    d, o = as_study(z, code)
    in_a = hospital_a(d["high"], 0.6, np.random.default_rng(5))
    compare_arms(d, in_a, tuple(MSI_ARMS), o, (0,), torch.device("cpu"))
    first, changed = seen.copy(), set()
    for kind, key in (("features", "x"), ("expression", "y")):
        for patient in np.flatnonzero(~in_a)[:6]:
            before, d[key] = d[key], d[key].copy()
            d[key][patient] = 9 if kind == "features" else 5
            seen.clear()
            compare_arms(d, in_a, tuple(MSI_ARMS), o, (0,), torch.device("cpu"))
            d[key] = before
            for (sizes, rows, *a), (_, _, *b) in zip(first, seen, strict=True):
                foreign = (
                    patient not in rows and sizes[0] == 24
                )  # codes of a network that saw him may change
                if foreign and not all(u.shape == v.shape and (u == v).all() for u, v in zip(a, b)):
                    changed.add(kind)
    whole_b = [
        rows
        for sizes, rows, *_ in first
        if sizes == (24, 16, 8, 16, 24) and set(np.flatnonzero(~in_a)) <= set(rows)
    ]
    assert changed == kinds and len(whole_b) == (
        "autoencoder" in code
    )  # one autoencoder of all of B, test patients too


def test_auc_is_of_patients_and_of_their_own_test_fold(monkeypatch, small):
    """Three slides a patient; the networks' scores replaced by known ones, the AUC by counting pairs."""
    z = study(np.random.default_rng(3), slides=3)
    d, o = as_study(z)
    score, in_a = np.random.default_rng(4).random(135), np.arange(45) < 15
    in_a = in_a.repeat(3)

    def fake(pool, sizes, activations, inputs, trains, seeds, epochs, batch, device, take):
        for m, rows in enumerate(trains):
            assert not set(d["patients"][rows]) & set(
                d["patients"][np.setdiff1d(np.flatnonzero(~in_a), rows)]
            )  # whole patients
            tests.append(np.setdiff1d(np.flatnonzero(~in_a), rows))
            yield m, take([None] * (len(sizes) - 2) + [(score + m)[:, None]])

    tests = []
    swap(monkeypatch, "lab.fast.networks", "train_networks", fake)
    aucs, _ = compare_arms(d, in_a, ("direct",), o, (0,), torch.device("cpu"))
    for auc, rows in zip(aucs["direct"].flat, tests, strict=True):
        names = np.unique(d["patients"][rows])
        of = np.array([score[d["patients"] == n].mean() for n in names])
        high = np.array([d["high"][d["patients"] == n][0] for n in names])
        assert auc == pytest.approx(np.mean([p > q for p in of[high] for q in of[~high]]))
    assert all(
        len(np.unique(np.concatenate(tests[i : i + 3]))) == 90 for i in (0, 3)
    )  # a repeat tests all of B once


def test_msi_run_interrupted_extended_and_reported(tmp_path, monkeypatch, small, capsys):
    z = study(np.random.default_rng(1))
    options = ("--splits", "2", "--ratios", "1/3,1/2", "--repeats", "2")
    assert run_study(tmp_path, z, *options, name="whole") == 0
    said = capsys.readouterr().out
    rows = read_csv(tmp_path / "whole" / "results.csv")
    assert list(rows[0]) == [
        "split",
        "ratio",
        "arm",
        "repeat",
        "fold",
        "auc",
        "patients_b",
        "msi_h_b",
    ]
    assert (
        len(rows) == 2 * 2 * 5 * 2 * 3
        and {r["ratio"] for r in rows} == {"1/3", "1/2"}
        and {r["patients_b"] for r in rows} == {"30", "23"}
    )
    plain, calls = compare_arms, []

    def broken(*a):
        calls.append(a[4])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return plain(*a)

    swap(monkeypatch, "lab.he2rna.msi", "compare_arms", broken)
    with pytest.raises(KeyboardInterrupt):
        run_study(tmp_path, z, *options)
    assert len(read_csv(tmp_path / "run" / "results.csv")) == 2 * 5 * 6
    run_study(tmp_path, z, *options)
    assert len(calls) == 3 + 2  # the two that were missing, no more
    for name in ("results.csv", "table.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    calls.clear()
    run_study(
        tmp_path,
        z,
        "--splits",
        "3",
        "--ratios",
        "1/2",
        "--repeats",
        "2",
        "--arms",
        "direct,transcriptome",
    )
    more = read_csv(tmp_path / "run" / "results.csv")
    assert (
        [c[0] for c in calls] == [2]
        and [r for r in more if r["split"] != "2"] == rows
        and len(more) == len(rows) + 2 * 6
    )
    with pytest.raises(InputError, match="other settings.*code"):
        run_study(tmp_path, z, *options, "--follow", "code")
    with open(tmp_path / "run" / "results.csv", "a") as f:
        f.write("x,1/2,direct,0,0,.5,9,3\n")
    with pytest.raises(InputError, match="x,1/2,direct.* is no row of ours"):
        run_study(tmp_path, z, *options)
    with pytest.raises(SystemExit):
        run_study(tmp_path, z, "--ratios", "1/0")
    z["expression"][:] = -3  # the floor, everywhere
    with pytest.raises(InputError, match="no gene is expressed"):
        run_study(tmp_path, z, *options, name="floor")
    assert {f.name for f in (tmp_path / "whole").iterdir()} == {
        "config.json",
        "log.jsonl",
        "results.csv",
        "table.csv",
        "report.md",
        "shares.png",
        "arms.png",
    }
    table = read_csv(tmp_path / "whole" / "table.csv")
    each = [
        np.mean(
            [
                float(r["auc"])
                for r in rows
                if (r["split"], r["ratio"], r["arm"]) == (s, "1/2", "direct")
            ]
        )
        for s in "01"
    ]
    row = next(r for r in table if (r["ratio"], r["arm"]) == ("1/2", "direct"))
    assert float(row["auc"]) == pytest.approx(np.mean(each), abs=1e-4) and float(
        row["sd"]
    ) == pytest.approx(np.std(each, ddof=1), abs=1e-4)
    report = (tmp_path / "whole" / "report.md").read_text()
    assert (
        f"{(z['msi'] == 'MSI-H').sum()} MSI-H" in report
        and "too few splits for a p < .05 at 1/3" in report
        and report.split("\n\n")[-3].strip() in said
    )


def test_msi_verdict_is_of_paired_splits():
    rng, results = np.random.default_rng(0), {}
    for s in range(12):
        level = rng.normal(0, 0.2)  # shared by the arms: only pairs see the difference
        results.update(
            {
                (s, "1/2", "transcriptome"): level,
                (s, "1/2", "direct"): level - 0.03 + rng.normal(0, 0.005),
                (s, "1/2", "ensemble"): level + 0.02 + rng.normal(0, 0.005),
                (s, "1/2", "autoencoder-a"): level + rng.normal(0, 0.01),
            }
        )
    text = verdict(results, ["1/2"], ["direct", "ensemble", "autoencoder-a"], 3)
    assert re.search(r"direct, one network it wins at 1/2 \(\+0.029\)", text) and re.search(
        r"direct, ensemble it loses at 1/2 \(-0.021\)", text
    )
    assert "autoencoder of A it cannot be told apart" in text
    a, b, p = compare_to(results, "1/2", "direct")
    assert p == pytest.approx(scipy.stats.wilcoxon(a, b, method="exact").pvalue)


def test_given_hospitals_need_only_what_they_use(tmp_path, small):
    z = study(np.random.default_rng(2))
    z["hospital"] = np.where(np.arange(45) < 20, "A", "B")
    z["expression"][20:] = np.nan
    z["msi"][:20] = ""
    assert run_study(tmp_path, z, "--splits", "2", "--repeats", "1") == 0
    rows = read_csv(tmp_path / "run" / "results.csv")
    assert (
        {r["ratio"] for r in rows} == {"given"}
        and {r["patients_b"] for r in rows} == {"25"}
        and len(rows) == 2 * 5 * 3
    )
    assert "say nothing of other patients" in (tmp_path / "run" / "report.md").read_text()
    z["hospital"] = np.where(np.arange(45) < 21, "A", "B")
    z["expression"][20], z["msi"][20] = 1, "MSS"
    with pytest.raises(InputError, match="other settings.*data"):
        run_study(tmp_path, z, "--splits", "2", "--repeats", "1")
    with pytest.raises(
        InputError, match="--ratios 1/2: not where .* has a hospital for each patient"
    ):
        run_study(tmp_path, z, "--ratios", "1/2", name="other")


def spoiled(**change):
    z = study(np.random.default_rng(0))
    for key, f in change.items():
        z[key] = f(z[key]) if key in z else f(z)
    return z


@pytest.mark.parametrize(
    "z, argv, words",
    [
        (
            lambda: spoiled(msi=lambda v: np.where(v == "MSI-L", "MSI low", v)),
            (),
            r"\d+ of 'MSI low', of 45 labels, are none of MSI-H",
        ),
        (
            lambda: spoiled(msi=lambda v: np.where(np.arange(45) < 2, "MSI-H", "MSS")),
            (),
            "2 MSI-H and 43 other patients; --folds 3 needs as many",
        ),
        (lambda: spoiled(msi=lambda v: np.full(45, "MSS")), (), "0 MSI-H and 45 other"),
        (
            lambda: spoiled(msi=lambda v: np.where(np.arange(45) < 4, "MSI-H", "MSS")),
            ("--ratios", "1/2,3/4"),
            "1/2 in A leaves B 2 MSI-H and 2. other",
        ),
        (
            lambda: spoiled(msi=lambda v: np.where(np.arange(45) < 40, "Indeterminate", "MSI-H")),
            (),
            "5 MSI-H and 0 other",
        ),
        (
            lambda: spoiled(
                hospital=lambda z: np.where((np.arange(45) < 30) | (z["msi"] != "MSI-H"), "A", "B")
            ),
            (),
            "and 0 other patients in hospital B",
        ),
        (
            lambda: spoiled(
                patients=lambda v: np.where(np.arange(45) < 4, v[0], v),
                hospital=lambda z: np.where(np.arange(45) % 2, "A", "B"),
                msi=lambda v: np.where(np.arange(45) < 4, "MSS", v),
            ),
            (),
            r"1 of 42 patients are of hospital two kinds: P000 \(A, B\)",
        ),
        (
            lambda: spoiled(
                patients=lambda v: np.where(np.arange(45) < 4, v[0], v),
                msi=lambda v: np.where(np.arange(45) < 2, "MSI-H", "MSS"),
            ),
            (),
            r"1 of 42 patients are labelled two kinds: P000 \(MSI-H, MSS\)",
        ),
        (lambda: spoiled(hospital=lambda z: np.full(45, "C")), (), "hospital: C in 45 rows"),
        (
            lambda: spoiled(features=lambda v: np.where(np.arange(45)[:, None] == 7, np.nan, v)),
            (),
            "features of 1 rows are NaN or infinite, the first of patient P007",
        ),
        (
            lambda: spoiled(
                expression=lambda v: np.where(
                    (np.arange(45)[:, None] == 8) & (np.arange(20) == 3), np.inf, v
                )
            ),
            (),
            "expression of 1 rows.*P008",
        ),
        (
            lambda: spoiled(expression=lambda v: v[:, :5]),
            (),
            r"expression \(45, 5\) for 45 patients and 20 genes",
        ),
        (lambda: spoiled(features=lambda v: v.astype(str)), (), "features are <U"),
        (lambda: {k: v for k, v in spoiled().items() if k != "msi"}, (), "no array msi"),
        (
            lambda: spoiled(expression=lambda v: v - 3),
            ("--scale", "linear"),
            "--scale linear, but expression has -",
        ),
        (lambda: spoiled(), ("--splits", "0"), "--splits 0: must be at least 1"),
        (lambda: spoiled(), ("--project", "COAD"), "--project: only with a cohort folder"),
        (lambda: spoiled(), ("--features", "dir"), "--features: only with a cohort folder"),
        (lambda: spoiled(features=lambda v: v[:, :0]), (), "nothing in features"),
        (lambda: spoiled(genes=lambda v: np.array("G")), (), "nothing in genes"),
    ],
)
def test_msi_mistakes_are_told_with_counts(tmp_path, small, z, argv, words):
    with pytest.raises(InputError, match=words):
        run_study(tmp_path, z(), *argv)
    assert not (tmp_path / "run").exists()


def test_msi_of_a_cohort_takes_mean_features_and_drops_what_has_no_label(
    tmp_path, small, capsys, monkeypatch
):
    write_cohort(tmp_path, np.random.default_rng(0), patients=24, per_patient=2)
    lines = (tmp_path / "samples.csv").read_text().split()
    labels = {
        f"p{i:02d}": "Indeterminate" if i == 3 else "msi-h" if i % 3 == 0 else "MSS"
        for i in range(24)
    }
    (tmp_path / "samples.csv").write_text(
        "\n".join(
            [lines[0] + ",msi", *(f"{line},{labels[line.split(',')[1]]}" for line in lines[1:])]
        )
        + "\n"
    )
    seen, plain = [], compare_arms
    swap(
        monkeypatch, "lab.he2rna.msi", "compare_arms", lambda d, *a: seen.append(d) or plain(d, *a)
    )
    argv = [
        "msi",
        str(tmp_path),
        "--features",
        str(tmp_path / "h5"),
        "--splits",
        "1",
        "--ratios",
        "1/3",
        "--repeats",
        "1",
        "--device",
        "cpu",
    ]
    assert main(argv) == 0
    assert (
        "23 patients, 46 slides: 7 MSI-H, 0 MSI-L, 16 MSS; dropped: 2 slides"
        in capsys.readouterr().out
    )
    with h5py.File(tmp_path / "h5" / "s05_1.h5") as h:
        mean = h["features"][()].astype(float).mean(0)
    d = seen[0]
    assert (
        np.abs(d["x"] - mean).max(1).min() < 1e-5
        and len(d["x"]) == 46
        and (tmp_path / "runs" / "msi" / "report.md").is_file()
    )
    assert d["y"].max() < 10  # log10 of FPKM-UQ
    (tmp_path / "samples.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="no column msi"):
        main(argv)


def test_the_representation_helps_on_real_expression_and_labels(tmp_path):
    """Real MSI status and expression of 306 patients, features simulated from expression programmes: B is a quarter."""
    main(
        [
            "msi",
            str(real("msi", "coadread_semisynthetic.npz")),
            "--name",
            str(tmp_path / "run"),
            "--splits",
            "1",
            "--ratios",
            "3/4",
            "--repeats",
            "1",
            "--arms",
            "transcriptome,direct",
            "--device",
            "cpu",
        ]
    )
    auc = {r["arm"]: float(r["auc"]) for r in read_csv(tmp_path / "run" / "table.csv")}
    assert auc["transcriptome"] > auc["direct"] > 0.6
