"""python he2rna.py predict RUN SLIDE...: the expression of slides that have none.

The mean of the run's models; of a slide of the run's patients, of those that did not learn from the
patient. Features are made where they are missing, as the run's were: minutes a slide on a CPU; the
prediction itself takes a second. Writes RUN/predict/SLIDE.csv: gene, log10(1 + FPKM-UQ), FPKM-UQ
(or the unit that the run learned), and of a SIMULATED cohort or an untrained encoder a column that
says so.
"""

from functools import partial

import numpy as np
import torch

import he2rna
from lab.application import each_slide, held_out
from lab.cohort.features import load_features
from lab.cohort.scale import column_of, unit_of_run
from lab.commands.he2rna.options import slide_options
from lab.commands.slide_options import add_options
from lab.devices import pick_device
from lab.files import InputError, save_csv, save_file
from lab.he2rna.bags import in_memory
from lab.he2rna.runs import bag_of, load_run, model_of
from lab.progress import report_failures
from lab.provenance import marked, of_prediction

LARGEST = 300  # log10 of what is still a number [ours]


def options(parser):
    a = parser.add_argument
    slide_options(a)
    a(
        "--representation",
        action="store_true",
        help="write the last hidden layer of the mean tile too: what transfers to other labels",
    )
    add_options(parser, of_run=True)


def run(o):
    run = load_run(o.run)
    device = pick_device(o.device)
    models = [model_of(saved, device) for saved in run["folds"]]
    folder = run["folder"] / "predict"
    done, failed = 0, {}
    for _, slide, into, source in each_slide(run, o, failed):
        name = slide.label
        try:
            use = held_out(run, slide, o.all_models)
            features, coords = load_features(into, source, slide.name)
            asked = [models[f] for f in use]
            bag, _ = bag_of(features, coords, run["config"])
            p = predict_slide(asked, bag)
        except InputError as e:
            failed[name] = str(e)
            continue
        words = of_prediction(run, slide.home)
        save_prediction(folder / f"{name}.csv", run["genes"], p, unit_of_run(run["config"]), words)
        if o.representation:
            each = he2rna.representations(asked, features)
            more = {"folds": use, "provenance": words}
            save = partial(np.savez, each=each, mean=each.mean(0), **more)
            save_file(folder / f"{name}.representation.npz", save)
        others = "" if len(use) == len(models) else " (the others learned from its patient)"
        who = f"models of folds {', '.join(map(str, use))}{others}"
        print(f"{name}: {len(features):,} tiles, {who} -> {folder / name}.csv")
        done += 1
    return report_failures(failed, done + len(failed), folder)


def predict_slide(models, bag):
    """Mean prediction of a slide, bag (T, D) -> (G,) float64."""
    x = torch.from_numpy(bag)[None]
    bags = in_memory(x, torch.ones(x.shape[:2], dtype=torch.bool))
    each = [he2rna.predict(model, bags, [0])[0] for model in models]
    p = np.mean(each, axis=0).astype(float)
    if not p.max() < LARGEST:  # nan is not, either
        raise InputError(
            f"its prediction is not finite: features up to {np.abs(bag).max():.3g} are of another "
            "scale than the run's"
        )
    return p


def save_prediction(path, genes, p, unit, words):
    """SLIDE.csv. Expression is not negative; its logarithm, as predicted, may be."""
    linear = np.maximum(0, 10.0**p - 1)
    rows = [(gene, f"{v:.6g}", f"{a:.6g}") for gene, v, a in zip(genes, p, linear)]
    header = ("gene", f"log10_1p_{column_of(unit)}", column_of(unit))
    save_csv(path, *marked(header, rows, words))
