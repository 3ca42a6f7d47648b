"""lab.he2rna.evaluation"""

import csv
import io
from pathlib import Path

import numpy as np
import torch

import he2rna
from he2rna import evaluate  # noqa: F401
from lab.fast.topk import HE2RNA
from lab.files import load_arrays, load_json, save_file
from lab.he2rna.training import predict_slides
from lab.progress import progress

MIN_NULL = 2000  # their R, at least: few genes get more outputs [ours]


def separate(names, code=()):
    return he2rna.separate(names, merged="merged" not in code)


def judged_in(fold, config):
    """(fold of each slide, number of folds) within which R is computed: one where `pooled` is flipped."""
    return (np.zeros_like(fold), 1) if "pooled" in config["code"] else (fold, config["folds"])


def code_of(folder):
    """The flipped choices of a run."""
    return (load_json(Path(folder) / "config.json") or {}).get("code", [])


@torch.inference_mode()
def untrained_r(config, data, bags, o, device, folder):
    """{cancer: (M copies, G)} R of M models of the same architecture that learned nothing; kept in null.npz of the run.

    Each predicts every held-out slide, a new one for each fold, as trained ones do. Few genes: more outputs, each judged
    against a gene, so that there is a null to fit. [HE2RNA Methods, Statistics and reproducibility]
    """
    y, fold, groups = data["y"], data["fold"], he2rna.cancers(data["projects"])
    within, k = judged_in(fold, config)
    M, G = o.null_models, y.shape[1]
    copies = -(-MIN_NULL // (M * G))
    saved = load_arrays(folder / "null.npz") or {}
    if saved.pop("models", None) == M and saved.keys() == groups.keys():
        return saved
    r, tick = (
        {name: [] for name in groups},
        progress("untrained models", M * config["folds"], "folds"),
    )
    for m in range(M):
        prediction = np.zeros((len(y), G * copies), np.float32)
        for f in range(config["folds"]):
            torch.manual_seed(int(np.random.default_rng([o.seed, f, 1 + m]).integers(2**62)))
            model = HE2RNA(
                config["n_features"],
                G * copies,
                config["hidden"],
                config["ks"],
                code=config["code"],
                pad_to=config["pad_to"],
            ).to(device)
            if {"padding", "relu", "pooled"} & set(config["code"]) and "bias" not in config["code"]:
                # a shift of a fold's scores changes no R within it, but where zeros or other folds have a say
                model.layers[-1].bias.copy_(torch.from_numpy(np.tile(y[fold != f].mean(0), copies)))
            rows = np.flatnonzero(fold == f)
            if len(rows):
                prediction[rows] = predict_slides(model, bags, rows, o.batch)
            tick()
        for name, group in groups.items():
            for c in range(copies):
                r[name].append(
                    he2rna.mean_of_values(
                        he2rna.fold_r(prediction[:, c * G : (c + 1) * G], y, within, group, k)
                    )
                )
    r = {name: np.array(rows, np.float32) for name, rows in r.items()}
    save_file(folder / "null.npz", lambda f: np.savez(f, models=M, **r))
    return r


def write_genes(path, genes, results):
    """genes.csv: a row per cancer and gene, best first, with p under each null; hs and bh correct the one that decides.

    An empty R means no value (the gene or its prediction is constant).
    """
    one = next(iter(results.values()))
    nulls, k = sorted(one["all_p"]), len(one["folds"])
    header = [
        "gene",
        "project",
        "n",
        "R",
        *(f"p_{null}" for null in nulls),
        "p_holm_sidak",
        "p_bh",
        "significant_hs",
        "significant_bh",
        *(f"R_fold{f}" for f in range(k)),
    ]

    def quoted(cells):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        return text.getvalue()[:-1]

    def write(f):
        names = [quoted([g]) for g in genes]
        row = (
            "%d,%.6g" + ",%.6g" * len(nulls) + ",%.6g,%.6g,%d,%d" + ",%.6g" * k + "\n"
        )  # one formatting per row: fast
        f.write((quoted(header) + "\n").encode())
        for name, e in results.items():
            order, project = np.lexsort((-np.nan_to_num(e["r"], nan=-2), e["p"])), quoted([name])
            columns = (
                e["n"],
                e["r"],
                *(e["all_p"][null] for null in nulls),
                e["hs"],
                e["bh"],
                e["hs"] < he2rna.ALPHA,
                e["bh"] < he2rna.ALPHA,
                *e["folds"],
            )
            cells = zip(*(c[order].tolist() for c in columns))
            f.write(
                "".join(
                    f"{names[j]},{project},"
                    + (row % c).replace("nan", "")  # no value: an empty cell
                    for j, c in zip(order.tolist(), cells)
                ).encode()
            )

    save_file(path, write)
