"""How the report of a run opens: five sentences, and the paper's figures where the task is its.

`results` is what he2rna.evaluate gives: {cancer: a dict of r, n, p, hs, bh (G,), r_sign ...}.
"""

import numpy as np

import he2rna
from lab.cohort.names import person
from lab.cohort.scale import unit_of_run
from lab.files import few
from lab.progress import table
from lab.show.report import clauses, opening, section

NAMED = 4  # cancers; of more the report opens with the least and the most [ours]
NULLS = {  # what a gene that follows nothing is held to be like
    "decoys": "R of {decoys:,} decoys, genes whose patients changed places and which the same "
    "networks learned",
    "untrained": "R of models of the same architecture that learned nothing, the paper's null, "
    "which takes the folds for independent and makes p too small",
    "t": "R of so many independent patients, which takes the folds for independent and makes p "
    "too small where patients have one slide",
    "permutation": "R where patients change places within their fold, which takes the folds for "
    "independent and makes p too small where patients have one slide",
}
NO_P = "a p needs a fold with 3 test patients of a cancer"  # stats.MIN_R
GOOD = 0.4  # "greater than 0.4" [HE2RNA Methods, Statistics and reproducibility]
OF_PAPER = {  # of cancers of TCGA [HE2RNA Results; Methods, Statistics and reproducibility]
    "DLBC": ("significant HS", 7),
    "LUNG": ("significant HS", 15_391),
    "BRCA": (f"R > {GOOD}", 786),
    "LIHC": (f"R > {GOOD}", 765),
}
MEANS = {"significant HS": 3_627, "significant BH": 12_853}  # of its cancers [HE2RNA Results]
CANCERS = 28  # [HE2RNA Fig. 2a]
MANY = 20  # cancers, of which the mean is held against the paper's [ours]


def found(e, what):
    """How many genes of a cancer are significant by a correction, or have a good R."""
    if what == f"R > {GOOD}":
        return int((e["r"] > GOOD).sum())
    return int((e["hs" if what == "significant HS" else "bh"] < he2rna.ALPHA).sum())


# ----- Five sentences -----------------------------------------------------------------------------


def opening_of(config, data, results):
    """Lines of the five sentences."""
    counted = he2rna.separate(results, "merged" not in config["code"])
    results = {name: results[name] for name in counted}
    patients = {name: e["patients"] for name, e in results.items()}
    genes = f"{len(data.genes):,} gene{'s' * (len(data.genes) != 1)}"
    how = "by networks that have learned it from other patients"
    if "from_run" in config:
        how = f"by the models of the run {config['from_run']['name']}, fine-tuned on all tiles"
    where = " and ".join(counted) if len(counted) <= NAMED else f"{len(counted)} cancers"
    each = f" ({spread(patients)})" if len(counted) > 1 else ""
    tested = {name: e for name, e in results.items() if not np.isnan(e["p"]).all()}
    null = f"None: {NO_P}."
    if tested:
        null = (
            f"{NULLS[one(tested)['null']].format(**config)}; p is one-sided, corrected over all "
            f"genes of a cancer, and significant below {he2rna.ALPHA}."
        )
    return opening(
        f"Can the expression of {genes} be read from H&E slides of {where}, {how}?",
        f"{len(set(data.patients)):,} patients with {len(data.y):,} slides{each}, each predicted "
        f"by the one of {config['folds']} models that did not learn from them.",
        what_was_found(results, tested, genes),
        null,
        not_to_be_concluded(config, tested),
    )


def one(of):
    return next(iter(of.values()))


def spread(numbers):
    """Of {cancer: number}: each where they are few, else the least and the most."""
    if len(numbers) == 1:
        return f"{one(numbers):,}"
    if len(numbers) <= NAMED:
        return ", ".join(f"{name} {n:,}" for name, n in numbers.items())
    low, high = (choose(numbers, key=numbers.get) for choose in (min, max))
    if numbers[low] == numbers[high]:
        return f"{numbers[low]:,} in each"
    return f"from {low} {numbers[low]:,} to {high} {numbers[high]:,}"


def what_was_found(results, tested, genes):
    """How many genes are significant in each cancer that has a p, and the mean R of all."""
    r = he2rna.mean_of_values(np.concatenate([e["r"] for e in results.values()]))
    mean = "no gene has an R" if np.isnan(r) else f"the mean R of all genes is {r:.3f}"
    hs = {name: found(e, "significant HS") for name, e in tested.items()}
    bh = {name: found(e, "significant BH") for name, e in tested.items()}
    if not tested:
        said = f"Nothing is tested; {mean}"
    elif any(bh.values()):
        said = f"Of {genes}, significant by Holm–Šidák: {spread(hs)}; by Benjamini–Hochberg: "
        said += f"{spread(bh)}; {mean}"
    else:
        said = f"Not one of {genes} is significant after correction; {mean}"
    silent = [name for name in results if name not in tested]
    if silent and tested:
        said += f"; no p in {few(silent)}: {NO_P}"
    return f"{said}."


def not_to_be_concluded(config, tested):
    needed = {name: e["r_sign"][e["null"]] for name, e in tested.items()}
    needed = {name: r for name, r in needed.items() if not np.isnan(r)}
    shows = ""
    if needed:
        least = min(needed, key=needed.get)
        shows = (
            f" ({tested[least]['patients']:,} patients of {least} show what has an R from "
            f"{needed[least]:.2f} on)"
        )
    chosen = []
    if "from_run" in config:
        chosen = ["that p, corrected over these genes alone, holds where the run's R chose them"]
    return clauses(
        config["provenance"],
        *chosen,
        f"that a gene which is not significant leaves no trace on slides{shows}",
        "that the best genes, which were chosen by these patients, keep their R in others, or on "
        "slides of another hospital",
        "that what the network looks at causes the expression",
    )


# ----- The paper's figures ------------------------------------------------------------------------


def beside_the_paper(config, data, results):
    """Lines of the section; none but of TCGA's patients, real slides and all genes."""
    rows = []
    for name, e in results.items():
        if he2rna.short(name) in OF_PAPER:
            what, paper = OF_PAPER[he2rna.short(name)]
            rows.append((name, what, f"{paper:,}", f"{found(e, what):,}"))
    counted = he2rna.separate(results, "merged" not in config["code"])
    if len(counted) >= MANY:
        for what, paper in MEANS.items():
            mean = np.mean([found(results[name], what) for name in counted])
            rows.append((f"mean of {len(counted)}", what, f"{paper:,}", f"{mean:,.0f}"))
    if not rows or not of_tcga(data.patients) or config["provenance"] or "from_run" in config:
        return []
    text = (
        f"The paper's figures are of 30,839 genes, {CANCERS} cancers, FPKM-UQ and the untrained "
        f"null; here of {len(data.genes):,} genes, {unit_of_run(config)} and the "
        f"{one(results)['null']} null."
    )
    header = ("cancer", "genes", "paper", "here")
    return section("Beside the paper", text, table(header, rows))


def of_tcga(patients):
    """Whether all patients have TCGA's barcodes."""
    return all((person(patient) or "").startswith("TCGA-") for patient in set(patients))
