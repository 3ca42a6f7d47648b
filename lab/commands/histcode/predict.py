"""lab.commands.histcode.predict"""

import numpy as np

import histcode
from lab.application import each_slide, held_out
from lab.cohort.features import load_features
from lab.commands.histcode.options import slides_of_run
from lab.commands.options import report_failures
from lab.devices import pick_device
from lab.files import InputError, save_csv
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import mean_prediction
from lab.histcode.runs import load_run, off_scale


def run(o):
    """Diagnose slides, or predict their patients' fold changes, by a finished run: the mean of its models, a csv each."""
    run, device, failed, done = load_run(o.run, o.pooling), pick_device(o.device), {}, 0
    saved, appliers = run["folds"], [apply_heads(s, device) for s in run["folds"]]
    for _, home, into, source, name in each_slide(run, o, failed):
        try:
            h, use = load_features(into, source, name)[0], held_out(run, name, home, o.all_models)
            if saved[0]["kind"] == "linear" and len(h) < 2:
                raise InputError("one tile; the highest and the lowest by attention need two")
            with np.errstate(over="ignore"):
                got = mean_prediction(saved, appliers, use, h)
                fc = np.maximum(10.0 ** got[0] - 1, 0)  # of a diagnosis it has no meaning
            if not np.isfinite([*got, fc]).all():
                raise InputError(off_scale(h))
        except InputError as e:
            failed[name] = str(e)
            continue
        path = run["folder"] / "predict" / f"{name}.csv"
        if saved[0]["kind"] == "diagnosis":
            classes = run["config"]["classes"]
            save_csv(
                path,
                ("slide", *(f"p_{c}" for c in classes), "predicted"),
                [(name, *(f"{v:.6f}" for v in got), classes[int(got[1] > 0.5)])],
            )
            said = f"{classes[1]} {got[1]:.3f}"
        else:
            said = "p" if saved[0]["kind"] == "linear" else "predicted"  # a probability, or 1 and 0
            save_csv(
                path,
                (
                    "gene",
                    "log10_fc_plus_1",
                    "fold_change",
                    f"{said}_abs_log2_fc_above_{histcode.LOG2_FC}",
                ),
                (
                    (g, *(f"{v:.6g}" for v in row))
                    for g, *row in zip(saved[0]["genes"], got[0], fc, got[1])
                ),
            )
            said = f"{len(fc):,} genes"
        print(f"{name}: {len(h):,} tiles, {len(use)} of {len(saved)} models, {said} -> {path}")
        done += 1
    return report_failures(failed, done + len(failed), run["folder"] / "predict")


def options(parser):
    slides_of_run(parser)
