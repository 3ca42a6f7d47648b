"""What reports open with, and where the paper's figures stand beside ours."""

from types import SimpleNamespace

import numpy as np
import pytest

import he2rna
from lab.he2rna.msi_report import Aucs
from lab.he2rna.msi_report import beside_the_paper as msi_beside_the_paper
from lab.he2rna.msi_report import opening_of as msi_opening_of
from lab.he2rna.report_opening import beside_the_paper, opening_of
from lab.provenance import SIMULATED, UNTRAINED
from lab.show.report import settings_section

ASKED = ["Asked", "Patients", "Found", "Null", "Not to be concluded"]


def run_of(projects, planted=0, genes=12, per_fold=10):
    """(config, data, results) of a run of three folds whose first genes are predicted."""
    rng = np.random.default_rng(0)
    n = 3 * per_fold
    fold, of = np.arange(n * len(projects)) % 3, np.repeat(projects, n)
    y = rng.normal(size=(len(fold), genes))
    prediction = rng.normal(size=y.shape)
    prediction[:, :planted] += 3 * y[:, :planted]
    patients = np.array([f"TCGA-AA-{i:04d}" for i in range(len(fold))])
    data = SimpleNamespace(y=y, genes=[f"G{g}" for g in range(genes)], patients=patients)
    config = {"code": [], "folds": 3, "provenance": [], "decoys": 200, "unit": "TPM"}
    return config, data, he2rna.evaluate(prediction, y, fold, of, 3, patients=patients)


def sentences(lines):
    """{what: its sentence}"""
    said = {}
    for line in filter(None, lines):
        name, text = line.removeprefix("- **").split(".** ", 1)
        said[name] = text
    assert list(said) == ASKED
    return said


@pytest.mark.parametrize(
    "projects, found",
    [
        (
            ["LIHC"],
            "Of 12 genes, significant by Holm–Šidák: 4; by Benjamini–Hochberg: 4;",
        ),
        (["LUAD", "LUSC"], "Holm–Šidák: 4;"),
        (
            ["ACC", "BLCA", "CESC", "CHOL", "COAD"],
            "by Holm–Šidák: 4 in each; by Benjamini–Hochberg: 4 in each",
        ),
    ],
)
def test_a_report_opens_with_what_was_asked_found_and_not_to_be_concluded(projects, found):
    config, data, results = run_of(projects, planted=4)
    said = sentences(opening_of(config, data, results))
    assert "expression of 12 genes" in said["Asked"] and "other patients" in said["Asked"]
    assert f"{30 * len(projects)} patients with {30 * len(projects)} slides" in said["Patients"]
    assert found in said["Found"] and "mean R" in said["Found"]
    assert "takes the folds for independent" in said["Null"]  # without decoys the t decides
    assert said["Not to be concluded"].startswith("That a gene which is not significant")
    assert "5 cancers" in said["Asked"] or len(projects) < 5


def test_nothing_found_and_no_p_are_said_as_such():
    said = sentences(opening_of(*run_of(["LIHC"])))
    assert said["Found"].startswith("Not one of 12 genes is significant after correction; the mean")
    config, data, results = run_of(["LIHC"])
    results["LIHC"]["p"][:] = np.nan
    results["LIHC"]["r_sign"]["t"] = np.nan
    said = sentences(opening_of(config, data, results))
    assert said["Found"].startswith("Nothing is tested; the mean R")
    assert said["Null"].startswith("None: ") and "show what" not in said["Not to be concluded"]
    results["ACC"] = run_of(["ACC"], planted=4)[2]["ACC"]
    said = sentences(opening_of(config, data, results))
    assert "no p in LIHC: a p needs a fold with 3" in said["Found"] and "4;" in said["Found"]


def test_a_simulated_cohort_and_a_random_encoder_stand_in_what_must_not_be_concluded():
    config, data, results = run_of(["LIHC"])
    config["provenance"] = [SIMULATED, UNTRAINED]
    never = sentences(opening_of(config, data, results))["Not to be concluded"]
    assert never.startswith(f"That this tells of patients ({SIMULATED}; {UNTRAINED}); that a gene")


def test_fine_tuning_is_of_genes_that_may_have_been_chosen_by_the_same_patients():
    config, data, results = run_of(["LIHC"], planted=4)
    said = sentences(opening_of({**config, "from_run": {"name": "first"}}, data, results))
    assert "models of the run first, fine-tuned on all tiles" in said["Asked"]
    assert said["Not to be concluded"].startswith("That p, corrected over these genes alone")


def test_the_papers_figures_stand_only_beside_tcgas_patients_on_real_slides():
    config, data, results = run_of(["TCGA-DLBC", "LUAD", "LUSC", "LIHC"], planted=4)
    lines = "\n".join(beside_the_paper(config, data, results))
    assert "| DLBC | significant HS | 7 | 4 |" in lines
    assert "| LUNG | significant HS | 15,391 | 4 |" in lines and "| LUAD |" not in lines
    assert f"| LIHC | R > 0.4 | 765 | {(results['LIHC']['r'] > 0.4).sum()} |" in lines
    assert "mean of" not in lines
    simulated = {**config, "provenance": [SIMULATED]}
    others = SimpleNamespace(**{**vars(data), "patients": np.array(["P1"])})
    assert beside_the_paper(simulated, data, results) == []
    assert beside_the_paper(config, others, results) == []
    assert beside_the_paper({**config, "from_run": {"name": "a"}}, data, results) == []
    assert beside_the_paper(*run_of(["LGG"])) == []  # nothing of it is in the paper
    many = beside_the_paper(*run_of([f"C{i:02d}" for i in range(20)], per_fold=3))
    assert "| mean of 20 | significant HS | 3,627 | 0 |" in "\n".join(many)


def msi_study(splits, gain, ratios=("1/6", "1/2")):
    """(config, study, Aucs) of two arms, the transcriptome better by `gain`."""
    rng, results = np.random.default_rng(0), {}
    for ratio in ratios:
        for split in range(splits):
            direct = rng.normal(0.7, 0.02)
            better = direct + gain + rng.normal(0, 0.003)
            for arm, auc in (("transcriptome", better), ("direct", direct)):
                results[split, ratio, arm] = [[split, ratio, arm, 0, 0, auc, 30, 6]]
    patients = np.array(["TCGA-AA-0001", "TCGA-AA-0002"])
    study = SimpleNamespace(line="60 patients", patients=patients, projects=np.array(["COAD"] * 2))
    return {"provenance": []}, study, Aucs(results, 60)


@pytest.mark.parametrize(
    "gain, found",
    [
        (0.05, "better than direct, one network with 1/6, 1/2 in A"),
        (-0.05, "worse than direct, one network with 1/6, 1/2 in A"),
        (0.0, "the transcriptome is told apart from no other arm"),
    ],
)
def test_an_msi_report_opens_with_its_verdict(gain, found):
    config, study, aucs = msi_study(12, gain)
    said = sentences(msi_opening_of(config, study, aucs))
    assert found in said["Found"] and "with 1/6 and 1/2 of the patients in A" in said["Found"]
    assert said["Patients"] == "60 patients." and "corrected t" in said["Null"]
    assert "TCGA" not in "".join(said.values())
    assert "p < .0001" in "".join(msi_beside_the_paper(config, study))
    study.projects = np.array(["COAD", "READ"])
    assert msi_beside_the_paper(config, study) == []


def test_given_hospitals_have_no_null():
    said = sentences(msi_opening_of(*msi_study(3, 0.05, ("given",))))
    assert said["Null"].startswith("None: ") and "in A" not in said["Found"]


def test_settings_are_a_table():
    config = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "code": [], "x|y": "p|q"}
    lines = settings_section(config, more="0:01")
    assert lines[0] == "## Settings"
    rows = lines[2].splitlines()[2:]
    assert rows == [
        "| a | 1 |",
        "| b: c | 1, 2 |",
        "| b: d: e | none |",
        "| code | none |",
        "| x\\|y | p\\|q |",
        "| more | 0:01 |",
    ]
