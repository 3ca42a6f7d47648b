"""lab.commands.he2rna.predict"""

import numpy as np
import torch

from lab.application import each_slide, held_out
from lab.cohort.features import load_features
from lab.commands.options import add_options, report_failures
from lab.encoders import pick_device
from lab.files import InputError, save_csv, save_file
from lab.he2rna.bags import in_memory
from lab.he2rna.runs import bag_of, load_run, model_of, slides_of_run
from lab.he2rna.training import predict_slides


@torch.inference_mode()
def run(o):
    """Predict the expression of slides that have none: the mean of the run's models, as a csv for each slide."""
    run, device, failed, done = load_run(o.run), pick_device(o.device), {}, 0
    models, folder = (
        [model_of(saved, device).eval() for saved in run["folds"]],
        run["folder"] / "predict",
    )
    for _, home, into, source, name in each_slide(run, o, failed):
        try:
            features, coords = load_features(into, source, name)
            use, (bag, _) = (
                held_out(run, name, home, o.all_models),
                bag_of(features, coords, run["config"]),
            )
            x = torch.from_numpy(bag)[None]
            bags = in_memory(x, torch.ones(x.shape[:2], dtype=torch.bool))
            p = np.mean([predict_slides(models[f], bags, [0])[0] for f in use], axis=0).astype(
                float
            )  # (G,)
            if not p.max() < 300:  # 10 ** p must be a number, too; nan is not
                raise InputError(
                    f"its prediction is not finite: features up to {np.abs(features).max():.3g} are of another "
                    "scale than the run's"
                )
        except InputError as e:
            failed[name] = str(e)
            continue
        save_csv(
            folder / f"{name}.csv",
            ("gene", "log10_1p_fpkm_uq", "fpkm_uq"),
            ((g, f"{v:.6g}", f"{max(0, 10.0**v - 1):.6g}") for g, v in zip(run["genes"], p)),
        )
        if o.representation:
            mean = torch.from_numpy(np.asarray(features, np.float32).mean(0)).to(
                device
            )  # one super-tile
            last = np.stack([models[f].representation(mean).cpu().numpy() for f in use])  # (M, H)
            save_file(
                folder / f"{name}.representation.npz",
                lambda f: np.savez(f, each=last, mean=last.mean(0), folds=use),
            )
        print(
            f"{name}: {len(features):,} tiles, models of folds {', '.join(map(str, use))}"
            + ("" if len(use) == len(models) else " (the others learned from its patient)")
            + f" -> {folder / name}.csv"
        )
        done += 1
    return report_failures(failed, done + len(failed), folder)


def options(parser):
    slides_of_run(parser)
    a = parser.add_argument
    a(
        "--representation",
        action="store_true",
        help="write the last hidden layer of the mean tile too: what transfers to other labels",
    )

    add_options(parser, of_run=True)
