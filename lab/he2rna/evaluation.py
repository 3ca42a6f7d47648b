"""What a run's predictions are worth: the nulls of its decoys and of untrained models, genes.csv.

The statistics themselves are he2rna.evaluate and what stands around it.
"""

import csv
import io
from functools import partial
from pathlib import Path

import numpy as np

import he2rna
from lab.files import (
    InputError,
    as_cell,
    few,
    load_arrays,
    load_json,
    save_file,
    whole_arrays,
)
from lab.he2rna.bags import read_ahead
from lab.provenance import marked, said

MIN_NULL = 2000  # R behind the untrained null, at least: few genes get more outputs     [ours]


def code_of(folder):
    """The choices that a run turned to their other side."""
    return (load_json(Path(folder) / "config.json") or {}).get("code", [])


def judged_in(fold, config):
    """Within which folds R is computed: those of the run, or one of all slides (`pooled`).

    -> (fold of each slide, number of folds). [HE2RNA Results, prediction of gene expression]
    """
    if "pooled" in config["code"]:
        return np.zeros_like(fold), 1
    return fold, config["folds"]


def untrained_null(folder, config, data, bags, o, draw_model):
    """R of untrained models by cancer, {cancer: (M c, G)}; kept in null.npz of the run.

    draw_model(c, m, f) -> a new model m for fold f, with c outputs for each gene, so that there is
    a null to fit where the genes are few. [ours]
    """
    path = folder / "null.npz"
    y, fold, projects = data.y, data.fold, data.projects
    saved = load_arrays(path) or {}
    if saved.get("models") == o.null_models and "cancers" in saved:
        return by_cancer(saved)
    judged, n_folds = judged_in(fold, config)
    copies = -(-MIN_NULL // (o.null_models * y.shape[1]))
    null = {}
    for m in range(o.null_models):
        r = he2rna.untrained_r(
            partial(draw_model, copies, m),
            bags,
            y,
            fold,
            projects,
            n_folds,
            judged,
            batch=o.batch,
            ahead=read_ahead("untrained models"),
        )
        for name, rows in r.items():
            null.setdefault(name, []).append(rows.astype(np.float32))
    null = {name: np.concatenate(rows) for name, rows in null.items()}
    arrays = {
        "models": o.null_models,
        "cancers": np.array(list(null)),
        "r": np.array([*null.values()]),
    }
    save_file(path, lambda f: np.savez(f, **arrays))
    return null


def by_cancer(arrays):
    """{cancer: R (..., G)} of null.npz or decoys.npz."""
    return dict(zip(arrays["cancers"].tolist(), arrays["r"], strict=True))


def decoy_null(folder, config, data, prediction):
    """R of the decoys by cancer, {cancer: (m,)}, or None without decoys.

    prediction (S, G + m). decoys.npz keeps them beside their values and predictions, for
    fine-tuning, which goes on with them, and for whoever wants to check.
    """
    n_genes = len(data.genes)
    decoys, predicted = data.targets[:, n_genes:], prediction[:, n_genes:]
    if not decoys.shape[1]:
        return None
    fold, n_folds = judged_in(data.fold, config)
    r = he2rna.r_of_cancers(predicted, decoys, fold, data.projects, n_folds)
    arrays = {
        "slide": data.slides,
        "truth": decoys,
        "prediction": predicted,
        "cancers": np.array(list(r)),
        "r": np.array([*r.values()]),
    }
    save_file(folder / "decoys.npz", lambda f: np.savez(f, **arrays))
    return r


def decoys_of(run, slides, count=None):
    """The first decoys (S, count) of a finished run, in the order of some of its slides."""
    if count == 0:  # of a run that has none, too
        return np.zeros((len(slides), 0), np.float32)
    path = run["folder"] / "decoys.npz"
    z = whole_arrays(path, truth="fSG", slide="US")
    row = {slide: i for i, slide in enumerate(z["slide"].tolist())}
    lost = [slide for slide in slides.tolist() if slide not in row]
    if lost:
        raise InputError(f"{path} lacks the slides {few(lost)}: finish the run again")
    return z["truth"][[row[slide] for slide in slides.tolist()], :count]


def nulls_of(run):
    """What `he2rna.evaluate` takes of a finished run: its drawn nulls, and which one decides."""
    folder, config = run["folder"], run["config"]
    null = config["null"]
    nulls = {"null": null}
    if null == "decoys":
        nulls[null] = by_cancer(whole_arrays(folder / "decoys.npz", cancers="UC", r="fCm"))
    if null == "untrained":
        nulls[null] = by_cancer(whole_arrays(folder / "null.npz", cancers="UC", r="fCMG"))
    return nulls


def save_predictions(folder, data, prediction):
    """predictions.npz: every test slide's prediction beside the truth."""
    arrays = {
        "prediction": prediction,
        "truth": data.y,
        "genes": np.array(data.genes),
        "slide": data.slides,
        "patient": data.patients,
        "project": data.projects,
        "fold": data.fold,
    }
    save_file(folder / "predictions.npz", lambda f: np.savez_compressed(f, **arrays))


def write_genes(path, genes, results, words=()):
    """genes.csv: a row for each cancer and gene, best first, with p under each null.

    n: patients behind R, beside their slides. hs and bh correct the null that decides. An empty
    cell has no value: the gene, or its prediction, is constant. words: of lab.provenance.
    """
    one = next(iter(results.values()))
    nulls = sorted(one["all_p"])
    header = ["gene", "project", "n", "slides", "R", "R_pooled", *(f"p_{null}" for null in nulls)]
    header += ["p_holm_sidak", "p_bh", "significant_hs", "significant_bh"]
    header += [f"R_fold{f}" for f in range(len(one["folds"]))]
    header, _ = marked(header, (), words)
    end = f",{quoted([said(words)])}" if words else ""
    names = [quoted([gene]) for gene in genes]

    def write(file):
        file.write(f"{quoted(header)}\n".encode())
        for name, e in results.items():
            rows = rows_of_cancer(quoted([name]), names, e, nulls, end)
            file.write("".join(rows).encode())

    save_file(path, write)


def quoted(cells):
    """A line of a csv table, without its end."""
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(map(as_cell, cells))
    return text.getvalue()


def rows_of_cancer(project, names, e, nulls, end):
    """The lines of one cancer, each by one formatting: there are 30,839 for each of 28 cancers.

    end: of each line.
    """
    order = np.lexsort((-np.nan_to_num(e["r"], nan=-2), e["p"]))
    p = [e["all_p"][null] for null in nulls]
    significant = [e["hs"] < he2rna.ALPHA, e["bh"] < he2rna.ALPHA]
    behind = [e[key] for key in ("n", "n_slides", "r", "pooled")]
    columns = [*behind, *p, e["hs"], e["bh"], *significant, *e["folds"]]
    form = "%d,%d,%.6g,%.6g" + ",%.6g" * len(nulls) + ",%.6g,%.6g,%d,%d" + ",%.6g" * len(e["folds"])
    cells = zip(*(column[order].tolist() for column in columns), strict=True)
    for gene, values in zip(order.tolist(), cells, strict=True):
        numbers = (form % values).replace("nan", "")
        yield f"{names[gene]},{project},{numbers}{end}\n"
