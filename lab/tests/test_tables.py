"""Every column of a run's tables, and the figures of its report, worked out anew.

Authorities: SciPy and loops over predictions.npz, the checkpoints, samples.csv. A column that no
test here works out makes them fail.
"""

import html
import math
import re

import numpy as np
import pytest
import scipy.stats

import he2rna
from histcode import known_alike
from lab.he2rna.msi_report import LINES
from lab.histcode.ends import shuffled_p
from lab.tests.helpers import read_csv, saved, swap
from lab.tests.helpers_he2rna import main as he2rna_main
from lab.tests.helpers_he2rna import run_study, study, train, write_cohort
from lab.tests.helpers_histcode import (
    diagnose,
    folds_in,
    opening_of,
    spoken_by_hand,
    tiles_in,
    write_slides,
)

KINDS = ("TCGA-COAD", "TCGA-LUAD", "TCGA-LUSC")


def tables_of(report):
    """The tables of a report: {first cells of the header: [{column: cell}]}."""
    found = {}
    for block in re.findall(r"(?:^\|.*\|\n)+", report + "\n", re.M):
        header, _, *rows = (
            [c.strip() for c in line.split("|")[1:-1]] for line in block.split("\n")[:-1]
        )
        found[" ".join(header[:2])] = [dict(zip(header, row, strict=True)) for row in rows]
    return found


def number(cell):
    """A cell as a number, nan where it is empty."""
    return float(cell) if cell else math.nan


def close(row, want, key, rel=1e-4):
    """All columns of a row but its key are those wanted."""
    assert {*row} == {*want, *key}
    for name, value in want.items():
        got = row[name] if isinstance(value, str) else number(row[name])
        good = (
            value
            if isinstance(value, str)
            else pytest.approx(value, rel=rel, abs=1e-7, nan_ok=True)
        )
        assert got == good, (name, [row[k] for k in key])


def holm_sidak(p):
    """The step-down loop."""
    adjusted, last = np.empty(len(p)), 0
    for i, j in enumerate(np.argsort(p)):
        last = max(last, 1 - (1 - p[j]) ** (len(p) - i))
        adjusted[j] = last
    return adjusted


def p_of(r, n, mean=0.0):
    """One-sided p of R by Student's t, around the mean of a null."""
    r = (r - mean) / (1 - r * mean)
    return scipy.stats.t.sf(r * np.sqrt((n - 2) / (1 - r * r)), n - 2)


def fitted(null):
    """A null's mean, and the n of one R that scatters as widely, to its 99 % quantile."""
    sd = max(null.std(), (np.quantile(null, 0.99) - null.mean()) / scipy.stats.norm.ppf(0.99))
    return null.mean(), 1 + 1 / sd**2


def r_within(prediction, truth, fold, rows):
    """SciPy's R within each fold's test slides: (F,)"""
    each = []
    for f in range(3):
        own = rows & (fold == f)
        each.append(scipy.stats.pearsonr(prediction[own], truth[own])[0])
    return np.array(each)


# ----- HE2RNA ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on three cancers, two of which merge; genes follow the slides less and less."""
    cohort = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(0)
    write_cohort(cohort, rng, patients=36, per_patient=2, tiles=9)
    kinds = {f",p{p:02d},{'XY'[p % 2]}": f",p{p:02d},{KINDS[p % 3]}" for p in range(36)}
    text = (cohort / "samples.csv").read_text()
    for old, new in kinds.items():
        text = text.replace(old, new)
    (cohort / "samples.csv").write_text(text)
    lines = (cohort / "expression.csv").read_text().split()
    table = [lines[0] + "".join(f",H{j}" for j in range(20))]
    for line in lines[1:]:
        followed = np.log10([float(v) for v in line.split(",")[1:4]])
        noise = rng.normal(size=20) * np.linspace(0.2, 2, 20)
        values = 10 ** (0.5 + 0.8 * followed[np.arange(20) % 3] + noise)
        table.append(line + "".join(f",{v:.5g}" for v in values))
    (cohort / "expression.csv").write_text("\n".join(table) + "\n")
    argv = "--epochs 12 --lr 1e-2 --batch 8 --patience 2 --decoys 60 --null-models 1"
    assert train(cohort, *argv.split()) == 0
    return cohort / "runs" / "he2rna"


@pytest.fixture(scope="module")
def judged_anew(trained):
    """{(cancer, gene): what genes.csv should say}, and the nulls of each cancer."""
    z, d = np.load(trained / "predictions.npz"), np.load(trained / "decoys.npz")
    untrained = np.load(trained / "null.npz")
    genes, fold, project = z["genes"].tolist(), z["fold"], z["project"]
    rows, nulls = {}, {}
    for cancer, names in {"LUNG": KINDS[1:], **{k[5:]: [k] for k in KINDS}}.items():
        of = np.isin(project, names)
        sizes = np.array([len({*z["patient"][of & (fold == f)]}) for f in range(3)])
        n = sizes.sum()
        decoys = [
            r_within(x, y, fold, of).mean()
            for x, y in zip(d["prediction"].T, d["truth"].T, strict=True)
        ]
        place = untrained["cancers"].tolist().index(cancer)
        laws = nulls[cancer] = {
            "t": (0, n),
            "permutation": (0, 1 + 1 / ((1 / (sizes - 1)).sum() / 9)),
            "decoys": fitted(np.array(decoys)),
            "untrained": fitted(untrained["r"][place].astype(float)),
        }
        folds = [
            r_within(x, y, fold, of) for x, y in zip(z["prediction"].T, z["truth"].T, strict=True)
        ]
        r = np.mean(folds, 1)
        p = {f"p_{null}": p_of(r, n, mean) for null, (mean, n) in laws.items()}
        hs, bh = holm_sidak(p["p_decoys"]), scipy.stats.false_discovery_control(p["p_decoys"])
        for j, gene in enumerate(genes):
            pooled = scipy.stats.pearsonr(z["prediction"][of, j], z["truth"][of, j])[0]
            want = {"n": n, "slides": of.sum(), "R": r[j], "R_pooled": pooled}
            want |= {null: values[j] for null, values in p.items()}
            want |= {"p_holm_sidak": hs[j], "p_bh": bh[j]}
            want |= {"significant_hs": int(hs[j] < 0.05), "significant_bh": int(bh[j] < 0.05)}
            want |= {f"R_fold{f}": folds[j][f] for f in range(3)}
            rows[cancer, gene] = want
    return rows, nulls


def test_genes_csv_is_worked_out_from_the_predictions(trained, judged_anew):
    want, nulls = judged_anew
    rows = read_csv(trained / "genes.csv")
    assert [row["project"] for row in rows[::26]] == list(nulls) and len(rows) == 4 * 26
    for row in rows:
        close(row, want[row["project"], row["gene"]], ("project", "gene"), rel=2e-3)
    differ = [row for row in rows if row["significant_hs"] != row["significant_bh"]]
    assert differ  # or the corrections could be exchanged
    p = [number(row["p_decoys"]) for row in rows[:26]]
    assert p == sorted(p)


def test_recurrent_csv_counts_separate_cancers(trained, judged_anew):
    want, _ = judged_anew
    rows = read_csv(trained / "recurrent.csv")
    assert len(rows) == 26
    for row in rows:
        two = [want[cancer, row["gene"]] for cancer in ("LUNG", "COAD")]
        counted = {"mean_R": np.mean([e["R"] for e in two])}
        for kind in ("hs", "bh"):
            counted[f"cancers_{kind}"] = sum(e[f"significant_{kind}"] for e in two)
        close(row, counted, ("gene",), rel=1e-3)
    order = [(int(row["cancers_hs"]), float(row["mean_R"])) for row in rows]
    assert order == sorted(order, reverse=True)


def test_folds_csv_is_who_learned_and_who_chose(trained):
    cohort = trained.parents[1]
    samples = {row["slide"]: row for row in read_csv(cohort / "samples.csv")}
    z = np.load(trained / "predictions.npz")
    fold_of = dict(zip(z["slide"].tolist(), z["fold"].tolist(), strict=True))
    models = [saved(trained / f"fold{f}.pt") for f in range(3)]
    for row in read_csv(trained / "folds.csv"):
        sample, who = samples[row["slide"]], row["patient"]
        chosen = [str(f) for f, m in enumerate(models) if who in m["saw"]["choice of the epoch"]]
        want = {"patient": sample["patient"], "project": sample["project"]}
        want |= {"test_fold": fold_of[row["slide"]], "validates_folds": " ".join(chosen)}
        close(row, want, ("slide",))
        for f, model in enumerate(models):
            tests, learns = (
                who in model["test_patients"],
                who in model["saw"]["weights of the network"],
            )
            assert [tests, learns, str(f) in chosen].count(True) == 1
            assert tests == (f == fold_of[row["slide"]])


def test_the_report_of_he2rna_says_what_its_tables_say(trained, judged_anew):
    want, nulls = judged_anew
    report = (trained / "report.md").read_text()
    tables = tables_of(report)
    of = {c: [e for (cancer, _), e in want.items() if cancer == c] for c in nulls}
    count = {c: [sum(e[f"significant_{k}"] for e in of[c]) for k in ("hs", "bh")] for c in nulls}
    assert len(tables["cancer slides"]) == 4
    for row in tables["cancer slides"]:
        cancer = row["cancer"]
        r, (hs, bh) = [e["R"] for e in of[cancer]], count[cancer]
        said = {"slides": of[cancer][0]["slides"], "patients": of[cancer][0]["n"], "genes": 26}
        assert {k: int(row[k]) for k in said} == said
        assert (row["mean R"], row["median R"]) == (f"{np.mean(r):.3f}", f"{np.median(r):.3f}")
        assert (int(row["significant HS"]), int(row["significant BH"])) == (hs, bh)
    assert len(tables["cancer null"]) == 4 * 4
    for row in tables["cancer null"]:
        mean, n = nulls[row["cancer"]][row["null"]]
        p = np.array([e[f"p_{row['null']}"] for e in of[row["cancer"]]])
        found = holm_sidak(p), scipy.stats.false_discovery_control(p)
        assert [int(row[k]) for k in ("HS", "BH")] == [(each < 0.05).sum() for each in found]
        assert row["n"] == f"{n:.0f}"
        assert p_of(float(row["R_sign"]), n, mean) == pytest.approx(1 - 0.95 ** (1 / 26), rel=0.05)
    holds = {}
    for key, e in want.items():
        holds[key] = max(e["p_decoys"], p_of(e["R_pooled"], e["n"])) < 0.05
    for row in tables["gene cancer"]:
        e = want[row["cancer"], row["gene"]]
        signs = {k: float(row[k].replace("−", "-")) for k in ("R", "pooled R")}
        assert signs == {
            "R": pytest.approx(e["R"], abs=6e-4),
            "pooled R": pytest.approx(e["R_pooled"], abs=6e-4),
        }
        assert int(row["n"]) == e["n"] and float(row["p (HS)"]) == pytest.approx(
            e["p_holm_sidak"], rel=0.06
        )
        assert row["holds"] == ("yes" if holds[row["cancer"], row["gene"]] else "no")
    each = []
    for c in nulls:
        both = sum(
            e["significant_bh"] and holds[c, g] for (cancer, g), e in want.items() if cancer == c
        )
        each.append(f"{both} of {count[c][1]} in {c}")
    assert "; ".join(each) in report
    for f, row in enumerate(tables["fold test slides"]):
        note = saved(trained / f"fold{f}.pt")["note"]
        tested = sum(r["test_fold"] == str(f) for r in read_csv(trained / "folds.csv"))
        assert [int(row[k]) for k in ("test slides", "best epoch", "epochs run")] == [
            tested,
            note["best_epoch"],
            note["epochs"],
        ]
    at_least = {int(row["at least"]): int(row["genes"]) for row in tables["at least genes"]}
    recurrent = [int(row["cancers_hs"]) for row in read_csv(trained / "recurrent.csv")]
    assert at_least == {c: sum(n >= c for n in recurrent) for c in (1, 2)}


def test_the_opening_of_he2rnas_report_says_what_its_tables_say(trained, judged_anew):
    want, nulls = judged_anew
    opening = opening_of((trained / "report.md").read_text())
    page = html.unescape((trained / "report.html").read_text())
    assert opening["Asked"] == (
        "Can the expression of 26 genes be read from H&E slides of LUNG and COAD, by networks that "
        "have learned it from other patients?"
    )
    assert opening["Patients"].startswith("36 patients with 72 slides (LUNG 24, COAD 12)")
    said = []
    for kind, words in (("hs", "significant by Holm–Šidák"), ("bh", "by Benjamini–Hochberg")):
        n = {
            c: sum(e[f"significant_{kind}"] for (of, _), e in want.items() if of == c)
            for c in nulls
        }
        said.append(f"{words}: LUNG {n['LUNG']}, COAD {n['COAD']}")
    mean = np.mean([e["R"] for (cancer, _), e in want.items() if cancer in ("LUNG", "COAD")])
    assert (
        opening["Found"]
        == f"Of 26 genes, {'; '.join(said)}; the mean R of all genes is {mean:.3f}."
    )
    needed = {}
    for cancer in ("LUNG", "COAD"):
        law = nulls[cancer]["decoys"]
        t = scipy.stats.t.isf(1 - 0.95 ** (1 / 26), law[1] - 2)
        r = t / math.sqrt(law[1] - 2 + t * t)
        needed[cancer] = (r + law[0]) / (1 + r * law[0])
    least = min(needed, key=needed.get)
    n = {"LUNG": 24, "COAD": 12}[least]
    assert (
        f"({n} patients of {least} show what has an R from {needed[least]:.2f} on)"
        in opening["Not to be concluded"]
    )
    for text in opening.values():
        assert text in page


def test_signatures_csv_is_worked_out_by_other_lists(judged):
    """Shares by the hypergeometric law; means of all genes; p of R by lists of a loop."""
    folder, results = judged
    genes = [f"GENE{i}" for i in range(300)]
    sets = {"some": range(34, 60), "few": range(38, 60), "others": range(100, 130)}
    lines = ["\t".join([name, "x", *(genes[i] for i in of)]) for name, of in sets.items()]
    (folder / "sets.gmt").write_text("\n".join(lines) + "\n")
    argv = [word for name in sets for word in ("--signature", name)]
    run = "signatures", folder, "--gmt", folder / "sets.gmt", "--lists", 3000
    assert he2rna_main(*run, *argv) == 0
    level = np.load(folder / "predictions.npz")["truth"].mean(0)
    bins = np.argsort(np.argsort(level)) * 25 // 300
    rng = np.random.default_rng(5)
    rows = read_csv(folder / "signatures" / "signatures.csv")
    assert len(rows) == 6
    for row in rows:
        e, own = results[row["cancer"]], np.array(sets[row["signature"]])
        r, hits = np.nan_to_num(e["r"][:299]), e["hs"][:299] < 0.05  # the last has no R
        reached, means = np.zeros((2, 2)), np.zeros((2, 2))
        for _ in range(1000):
            alike = []
            for b, n in zip(*np.unique(bins[own], return_counts=True), strict=True):
                alike.extend(rng.choice(np.flatnonzero(bins[:299] == b), n, replace=False))
            for i, drawn in enumerate((rng.choice(299, len(own), replace=False), alike)):
                for j, values in enumerate((r, hits)):
                    means[i, j] += values[drawn].mean() / 1000
                    reached[i, j] += values[drawn].mean() >= values[own].mean() - 1e-9
        want = {"genes in it": len(own), "with R": len(own)}
        want |= {"R_p": r[own].mean(), "f_p": hits[own].mean()}
        for name, value in want.items():
            assert float(row[name]) == pytest.approx(value, rel=1e-3)
        for i, lists in enumerate(("", " matched")):
            for j, (mean, p) in enumerate((("R_o", "p"), ("f_o", "p (share)"))):
                assert float(row[mean + lists]) == pytest.approx(means[i, j], abs=0.01)
                assert float(row[p + lists]) == pytest.approx(reached[i, j] / 1000, abs=0.06)
                want[mean + lists] = want[p + lists] = 0
        law = scipy.stats.hypergeom(299, hits.sum(), len(own))
        assert float(row["p (share)"]) == pytest.approx(law.sf(hits[own].sum() - 1), abs=0.03)
        assert {*row} == {*want, "signature", "cancer"}


def test_every_column_of_an_enrichment_is_worked_out(judged):
    folder, results = judged
    sets = [line.split("\t") for line in (folder / "sets.gmt").read_text().split("\n")[:-1]]
    assert he2rna_main("enrich", folder, "--gmt", folder / "sets.gmt", "--correction", "bh") == 0
    for cancer in "AB":
        hits = {f"GENE{j}" for j in np.flatnonzero(results[cancer]["bh"] < 0.05)}
        rows = {row["set"]: row for row in read_csv(folder / "enrichment" / f"{cancer}.csv")}
        assert [*rows][-2:] == ["NOWHERE", "EMPTY"] and len(rows) == len(sets)
        p = {}
        for name, _, *members in sets:
            tested = [gene for gene in members if gene.startswith("GENE")]
            inside = [gene for gene in tested if gene in hits]
            a, n = len(inside), len(tested)
            table = [[a, n - a], [len(hits) - a, 299 - n - len(hits) + a]]
            p[name] = scipy.stats.fisher_exact(table, "greater")[1] if n else math.nan
            want = {"genes tested": n, "hits": a, "expected": n * len(hits) / 299}
            want |= {"fold": a * 299 / n / len(hits) if n else math.nan, "p": p[name]}
            want |= {"hit genes": " ".join(inside), "p_bh": number(rows[name]["p_bh"])}
            close(rows[name], want, ("set",), rel=1e-3)
        known = [name for name in p if not math.isnan(p[name])]
        adjusted = scipy.stats.false_discovery_control([p[name] for name in known])
        assert [float(rows[name]["p_bh"]) for name in known] == pytest.approx(adjusted, rel=1e-3)
        assert [rows[name]["p_bh"] for name in rows if name not in known] == ["", ""]


def test_every_column_of_an_msi_study_is_worked_out(tmp_path, small):
    """SciPy's t and signed-rank test; the patients by the draw of the hospitals."""
    z = study(np.random.default_rng(1))
    ratios = {"1/3": 1 / 3, "1/2": 1 / 2}
    argv = "--splits", "4", "--ratios", ",".join(ratios), "--repeats", "1"
    assert run_study(tmp_path, z, *argv) == 0
    run, high = tmp_path / "run", z["msi"] == "MSI-H"
    each, in_b = {}, {}
    for row in read_csv(run / "results.csv"):
        ratio, split = row["ratio"], int(row["split"])
        each.setdefault((ratio, row["arm"]), np.zeros((4, 3)))[split, int(row["fold"])] = row["auc"]
        in_a = he2rna.hospital_a(high, ratios[ratio], np.random.default_rng([0, split]))
        in_b[ratio] = (~in_a).sum(), (high & ~in_a).sum()
        assert (int(row["patients_b"]), int(row["msi_h_b"])) == in_b[ratio]
        assert row["repeat"] == "0"
    rows = read_csv(run / "table.csv")
    assert len(rows) == len(each) == 2 * 5
    for row in rows:
        ratio, arm = row["ratio"], row["arm"]
        auc = each[ratio, arm].mean(1)
        want = {"patients_b": in_b[ratio][0], "msi_h_b": in_b[ratio][1], "splits": 4}
        want |= {"auc": auc.mean(), "sd": auc.std(ddof=1)}
        want |= {"low_68": np.quantile(auc, 0.16), "high_68": np.quantile(auc, 0.84)}
        tests = ["transcriptome_less_it", "low_95", "high_95", "p", "p_splits"]
        tests.append("transcriptome_better")
        if arm == "transcriptome":
            want |= dict.fromkeys(tests, math.nan)
        else:
            d = each[ratio, "transcriptome"].mean(1) - auc
            n = want["patients_b"]
            t = scipy.stats.t(3, d.mean(), np.sqrt((1 / 4 + n / (45 - n)) * d.var(ddof=1)))
            p = 2 * min(t.cdf(0), t.sf(0))
            d = d.round(5)  # AUC of so few patients tie
            method = "exact" if len({*abs(d)} - {0}) == 4 else "approx"
            splits = scipy.stats.wilcoxon(d, correction=True, method=method).pvalue
            values = d.mean(), *t.interval(0.95), p, splits, (d > 0).sum()
            want |= dict(zip(tests, values, strict=True))
        for name, value in want.items():
            assert number(row[name]) == pytest.approx(value, rel=5e-3, abs=1e-4, nan_ok=True), name
        assert {*row} == {*want, "ratio", "arm"}
    report = (run / "report.md").read_text()
    assert tables_of(report)["ratio patients_b"] == rows
    opening = opening_of(report)
    means = [f"{each[r, 'autoencoder-a'].mean():.3f}" for r in ratios]
    assert f"autoencoder of A {' and '.join(means)};" in opening["Found"]
    for row in rows:
        if row["low_95"]:
            low, high = float(row["low_95"]), float(row["high_95"])
            kind = "better" if low > 0 else "worse" if high < 0 else "not told apart"
            (verdict,) = re.findall(rf"against {LINES[row['arm']][0]}: (.*) in A", report)
            (said,) = [part for part in verdict.split("; ") if part.startswith(f"{kind} at")]
            assert row["ratio"] in said


# ----- HistCode ----------------------------------------------------------------------------------


def test_every_column_of_a_diagnosis_is_worked_out(tmp_path):
    """Loops over pairs and thresholds; SlideModel, network by network, for the probabilities."""
    cohort = write_slides(tmp_path / "c", 18, labels=("normal", "tumor"))
    assert diagnose(cohort, "--rotate", "--repeats", "2", "--folds", "4") == 0
    run = cohort / "runs" / "diagnosis"
    samples = {row["slide"]: row for row in read_csv(cohort / "samples.csv")}
    word = {"normal": "normal", "tumor": "tumour"}
    parts = {row["slide"]: row for row in read_csv(run / "folds.csv")}
    for slide, row in parts.items():
        want = {"patient": samples[slide]["patient"], "label": word[samples[slide]["tumor"]]}
        want |= {f"part_{repeat}": row[f"part_{repeat}"] for repeat in "01"}
        close(row, want, ("slide",))
    figures, pooled = [], []
    rows = read_csv(run / "predictions.csv")
    for repeat in range(2):
        for f in range(4):
            model = saved(run / f"HistCode-r{repeat}-f{f}.pt")
            where = str(repeat), str(f)
            own = [row for row in rows if (row["repeat"], row["fold"]) == where]
            slides = [slide for slide in parts if parts[slide][f"part_{repeat}"] == str(f)]
            assert {row["slide"] for row in own} == {*slides}
            assert {row["patient"] for row in own} == {*model["test_patients"]}
            y, p = [], []
            for row in own:
                out, _ = spoken_by_hand(model, tiles_in(cohort, row["slide"]))
                p.append(1 / (1 + math.exp(out[0] - out[1])))
                y.append(parts[row["slide"]]["label"] == "tumour")
                want = {key: parts[row["slide"]][key] for key in ("patient", "label")}
                want |= {"pooling": "HistCode", "p_tumour": p[-1], "repeat": repeat, "fold": f}
                want["predicted"] = "tumour" if p[-1] > 0.5 else "normal"
                close(row, want, ("slide",), rel=1e-3)
            every = model["tests"].double().softmax(2)[:, :, 1].numpy()
            figures.append(figures_by_hand(np.array(y), np.array(p), every))
            pooled += zip(y, p, strict=True) if repeat == 0 else []
    (row,) = read_csv(run / "table.csv")
    want = {"pooling": "HistCode", "folds": 8}
    for name in figures[0]:
        values = np.array([fold[name] for fold in figures])
        values = values[~np.isnan(values)]
        want |= {name: values.mean(), f"{name}_sd": values.std(ddof=1)}
    for name, value in want.items():
        got = row[name] if isinstance(value, str) else float(row[name])
        assert got == (value if isinstance(value, str) else pytest.approx(value, abs=6e-5)), name
    assert {*row} == {*want}

    report = (run / "report.md").read_text()
    honest = re.search(r"\| pooling \| accuracy .*\n.*\n(\| HistCode .*)", report)[1]
    for name in ("accuracy", "auc", "pr_auc"):
        assert f"| {want[name]:.3f} ± {want[f'{name}_sd']:.3f} |" in honest
    optimism = [want[k] for k in ("accuracy", "best_epoch", "best_threshold", "auc")]
    cells = " | ".join(f"{v:.3f}" for v in [*optimism, want["best_epoch_auc"]])
    assert f"| HistCode | {cells} |" in report
    y, p = map(np.array, zip(*pooled, strict=True))
    once = figures_by_hand(y, p, p[None])
    opening = opening_of(report)
    said = f"In the first repeat: Accuracy {once['accuracy']:.3f} ("
    assert opening["Found"].startswith(said) and f"ROC-AUC {once['auc']:.3f} (" in opening["Found"]
    assert f"PR-AUC {once['pr_auc']:.3f} (" in opening["Found"]
    assert opening["Asked"] == (
        "Can slides be told tumour from normal by HistCode pooling of their tiles (h5, 8 features "
        "each)?"
    )
    common = max(y.mean(), 1 - y.mean())
    assert f"always the commoner class has accuracy {common:.3f}" in opening["Found"]
    assert f"{y.sum()} are tumour, {(~y).sum()} are normal" in opening["Patients"]
    assert "18 of 18 patients were tested" in opening["Patients"]


def figures_by_hand(y, p, every):
    """Figures of test slides y (n,) bool, p (n,), every (epochs, n): loops."""

    def auc(p):
        pairs = [(a > b) + (a == b) / 2 for a in p[y] for b in p[~y]]
        return np.mean(pairs) if pairs else math.nan

    cuts = [((p > cut) == y).mean() for cut in (-1, *p)]
    precision = [y[p >= one].mean() for one in p[y]]
    both = 0 < y.sum() < len(y)
    return {
        "accuracy": ((p > 0.5) == y).mean(),
        "auc": auc(p),
        "pr_auc": np.mean(precision) if both else math.nan,
        "best_epoch": max(((p > 0.5) == y).mean() for p in every),
        "best_threshold": max(cuts),
        "best_epoch_auc": max(map(auc, every)) if both else math.nan,
    }


def test_every_column_of_an_expression_is_worked_out(changed, monkeypatch):
    """SciPy, gene by gene; random predictions of the run's seed; p by the folds' features."""
    swap(monkeypatch, "lab.histcode.ends", "SHUFFLES", 2000)
    run = changed / "runs" / "linear"
    z, models = np.load(run / "predictions.npz"), folds_in(run)
    rows = {row["gene"]: row for row in read_csv(run / "genes.csv")}
    truth, predicted, part = z["truth"], z["prediction"], z["part"]
    rng, random = np.random.default_rng([0, 1]), np.full(truth.shape, np.nan)
    for at, genes in known_alike(truth):
        low, high = np.quantile(truth[np.ix_(at, genes)], (0.05, 0.95), axis=0)
        random[np.ix_(at, genes)] = low + (high - low) * rng.random((len(at), len(genes)))
    S, found = scipy.stats, {}
    for j, gene in enumerate(z["genes"].tolist()):
        known = ~np.isnan(truth[:, j])
        p, t, chance = predicted[known, j], truth[known, j], random[known, j]
        label, there = z["label"][:, j], ~np.isnan(z["label"][:, j])
        error, other = abs(p - t), abs(chance - t)
        ranks = S.rankdata(abs(error - other))
        share = label[there].mean()
        folds = [np.flatnonzero(known & (part == f)) for f in range(3)]
        within = [S.pearsonr(predicted[i, j], truth[i, j])[0] for i in folds if len(i) > 2]
        found[gene] = {
            "n": len(t),
            "R": S.pearsonr(p, t)[0],
            "p_t": S.pearsonr(p, t, alternative="greater")[1],
            "R_within_folds": np.mean(within),
            "spearman": S.spearmanr(p, t)[0],
            "R_random": S.pearsonr(chance, t)[0],
            "p_location": S.wilcoxon(p, chance)[1],
            "p_errors": S.wilcoxon(error, other)[1],
            "better": float(ranks[error < other].sum() > ranks[error > other].sum()),
            "mean_fc": (10**t - 1).mean(),
            "share_label_1": share,
            "accuracy": (z["predicted_label"][there, j] == label[there]).mean(),
            "majority": max(share, 1 - share),
        }
    ends = [model["ends"].numpy() for model in models]
    r, chance = (np.array([e[k] for e in found.values()]) for k in ("R", "R_random"))
    draw = np.random.default_rng([0, 2])
    p, p_of_all = shuffled_p(r, chance, ends, part, (0, 0, 0), truth, draw)
    for e, value in zip(found.values(), p, strict=True):
        e["p"] = value
    for bh, p in (("bh", "p"), ("bh_location", "p_location"), ("bh_errors", "p_errors")):
        adjusted = S.false_discovery_control([e[p] for e in found.values()])
        for e, value in zip(found.values(), adjusted, strict=True):
            e[bh] = value
    for gene, want in found.items():
        close(rows[gene], want, ("gene",), rel=1e-3)

    guessed = np.empty(truth.shape, bool)
    for f, model in enumerate(models):
        x, weights, bias = (model[k].numpy() for k in ("ends", "label_weights", "label_bias"))
        guessed[part == f] = (x @ weights + bias > 0)[part == f]
    assert np.array_equal(z["predicted_label"], guessed)
    assert 0 < guessed.mean() < 1

    report = (run / "report.md").read_text()
    opening = opening_of(report)
    e = {k: np.array([of[k] for of in found.values()]) for k in found["UP0"]}
    assert opening["Asked"] == (
        "Which of 6 genes change in a patient's tumour against her or his normal tissue, as "
        "tumour slides tell it (h5, model linear)?"
    )
    hits, right, common = e["bh"] < 0.05, e["accuracy"], e["majority"]
    assert (
        f"; R has mean {e['R'].mean():.3f} and is above .4 in {(e['R'] > 0.4).sum()}. Whether "
        f"|log2 fc| is above 1.5 is told better than by always the commoner label in "
        f"{(right > common).sum()} genes, worse in {(right < common).sum()}."
    ) in opening["Found"] or not hits.any()
    for said in (
        f"over 9 held-out pairs: mean {e['R'].mean():.3f}, Spearman {e['spearman'].mean():.3f}; "
        f"R > .2 in {(e['R'] > 0.2).sum()}, > .4 in {(e['R'] > 0.4).sum()} of 6 genes; p below "
        f"0.05 by Benjamini-Hochberg in {hits.sum()} ",
        f"of the truth: mean R {e['R_random'].mean():.3f}, SD {e['R_random'].std():.3f}. All R "
        f"against theirs: p {p_of_all:.2g} by patients shuffled",
        f"(p {S.mannwhitneyu(r, chance)[1]:.2g}) takes genes",
        f"predictions differ in {(e['bh_location'] < 0.05).sum()} genes",
        f"smaller in {((e['bh_errors'] < 0.05) & (e['better'] == 1)).sum()}, larger in "
        f"{((e['bh_errors'] < 0.05) & (e['better'] == 0)).sum()}.",
        f"accuracy above .9 in {(right > 0.9).sum()}, above .8 in {(right > 0.8).sum()} of 6 "
        f"genes; always the commoner label would have it in {(common > 0.9).sum()} and "
        f"{(common > 0.8).sum()}. Accuracy beats the commoner label in {(right > common).sum()} "
        f"genes, falls short in {(right < common).sum()}; mean {right.mean():.3f} against "
        f"{common.mean():.3f}.",
        f"R and mean fold change over genes {S.spearmanr(e['R'], e['mean_fc'])[0]:.3f}.",
    ):
        assert said in report, said
    for f, row in enumerate(tables_of(report)["fold train"]):
        sizes = [len(models[f][f"{part}_patients"]) for part in ("train", "valid", "test")]
        assert [int(row[k]) for k in ("train", "validation", "test")] == sizes
        assert (int(row["epoch"]), float(row["penalty"])) == (models[f]["epochs"].item(), 0)
    tissue = {row["slide"]: row for row in read_csv(changed / "samples.csv")}
    for row in read_csv(run / "folds.csv"):
        slide = tissue[row["slide"]]
        own = part[z["patient"] == slide["patient"]][0]
        want = {"patient": slide["patient"], "part": own, "pair": 1}
        want["tissue"] = ("normal", "tumour")[int(slide["tumor"])]
        close(row, want, ("slide",))
