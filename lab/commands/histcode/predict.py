"""Diagnose slides, or predict their patients' fold changes, by the models of a finished run.

    python histcode.py predict RUN SLIDE...

The mean of the models that did not learn from the slide's patient. Writes RUN/predict/SLIDE.csv, in
which a column tells of a SIMULATED cohort or an untrained encoder.
"""

import numpy as np

import histcode
from lab.application import each_slide, held_out
from lab.cohort.features import load_features
from lab.commands.histcode.options import slides_of_run
from lab.devices import pick_device
from lab.files import InputError, save_csv
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import mean_prediction
from lab.histcode.runs import load_run, off_scale
from lab.progress import report_failures
from lab.provenance import marked, of_prediction

options = slides_of_run


def run(o):
    run = load_run(o.run, o.pooling)
    models = run["folds"]
    device = pick_device(o.device)
    appliers = [apply_heads(saved, device) for saved in models]
    failed, done = {}, 0
    for _, slide, into, source in each_slide(run, o, failed):
        name = slide.label
        try:
            h = load_features(into, source, slide.name)[0]
            use = held_out(run, slide, o.all_models)
            header, rows, said = prediction_of(run, appliers, use, name, h)
        except InputError as e:
            failed[name] = str(e)
            continue
        path = run["folder"] / "predict" / f"{name}.csv"
        save_csv(path, *marked(header, rows, of_prediction(run, slide.home)))
        print(f"{name}: {len(h):,} tiles, {len(use)} of {len(models)} models, {said} -> {path}")
        done += 1
    return report_failures(failed, done + len(failed), run["folder"] / "predict")


def prediction_of(run, appliers, use, name, h):
    """Header and rows of a slide's csv, and the words for its line."""
    models = run["folds"]
    kind = models[0]["kind"]
    if kind == "linear" and len(h) < 2:
        raise InputError("one tile; the highest and the lowest by attention need two")
    with np.errstate(over="ignore"):  # refused below
        got = mean_prediction(models, appliers, use, h)
        if kind == "diagnosis":
            columns = list(got)
        else:
            y, label = got
            columns = [y, np.maximum(10.0**y - 1, 0), label]
    if not np.isfinite(columns).all():
        raise InputError(off_scale(h))
    if kind == "diagnosis":
        classes = run["config"]["classes"]
        header = ("slide", *(f"p_{c}" for c in classes), "predicted")
        row = (name, *(f"{p:.6f}" for p in got), classes[int(got[1] > 0.5)])
        return header, [row], f"{classes[1]} {got[1]:.3f}"
    label = f"abs_log2_fc_above_{histcode.LOG2_FC}"
    label = ("p_" if kind == "linear" else "predicted_") + label  # a probability, or 1 and 0
    rows = []
    for gene, *values in zip(models[0]["genes"], *columns, strict=True):
        rows.append([gene, *(f"{value:.6g}" for value in values)])
    return ("gene", "log10_fc_plus_1", "fold_change", label), rows, f"{len(rows):,} genes"
