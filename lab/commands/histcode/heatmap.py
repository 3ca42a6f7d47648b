"""lab.commands.histcode.heatmap"""

import math
from pathlib import Path

import numpy as np

import histcode
import stats
import tiling
from lab import space
from lab.application import each_slide, every_tile, held_out, pick_genes
from lab.cohort.features import load_features
from lab.cohort.places import read_outlines, read_places
from lab.commands.histcode.options import slides_of_run
from lab.commands.options import report_failures
from lab.devices import pick_device
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, save_csv, save_json, save_text
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import contributions
from lab.histcode.runs import load_run, off_scale
from lab.progress import table
from lab.show.gallery import draw_gallery
from lab.show.maps import draw_heatmap, map_ground, whole_folder
from lab.show.plots import need_matplotlib

SHIFTS = 199  # random shifts behind a p over tiles             [ours]


def map_scores(run, appliers, use, h, j, score):
    """Scores (T,) of the chosen models' mean: normalised attention, or contributions to output j; nan where no model has one
    (a tile at neither end adds 0 to a model's output, so that the means and the mean bias are the mean prediction)."""
    each = []
    for m in use:
        saved, a = run["folds"][m], appliers[m](h)[1].double().numpy()  # (M, T)
        each.append(
            histcode.scale_to_one(a[j if len(a) > 1 else 0])
            if score == "attention"
            else contributions(saved, h, a, j)
        )
        if not np.isfinite(a).all() or np.isinf(each[-1]).any():
            raise InputError(off_scale(h))
    there = ~np.isnan(each)
    return np.where(there.any(0), np.where(there, each, 0).mean(0), np.nan)


def map_slide(run, o, appliers, home, into, source, name, label, j, score):
    """One slide's map, written at once into RUN/heatmaps/LABEL/SLIDE/. -> dict for the line and the summary."""
    h, coords = load_features(into, source, name)
    if len(h) < 2:
        raise InputError("one tile: no highest and lowest")
    slide, (W, H), mpp, tile = map_ground(home, into, source, name, coords, o)
    use = held_out(run, name, home, o.all_models)
    scores = map_scores(run, appliers, use, h, j, score)
    shown = np.flatnonzero(~np.isnan(scores))
    columns, result = {score: scores}, dict(name=name, tiles=len(h), use=len(use))
    truth = home if any((home / d).is_dir() for d in ("points", "regions")) else run["cohort"]
    um, origin = qupath_frame(slide, mpp)
    cells, outlines = (
        read_places(truth, name, um, origin)[0],
        read_outlines(truth, name, origin, o.regions),
    )
    text = [
        f"# {label} on {name}",
        "",
        f"{len(h):,} tiles of {tile * mpp:.0f} µm; {score}"
        + (
            " between 0 (lowest) and 1 (highest tile)"
            if score == "attention"
            else f", whose sum and the bias are the prediction; {len(shown):,} tiles have one"
            if len(shown) < len(h)
            else ", whose sum and the bias are the prediction"
        )
        + f"; mean of {len(use)} of {len(appliers)} models, "
        + (
            "none of which learned from the slide's patient"
            if not o.all_models
            else "also those that learned from its patient"
        )
        + f". Run {run['folder']}.",
        "",
        "![Map](map.png)",
        "",
        "![Highest and lowest tiles](gallery.png)",
        "",
    ]
    s = scores[shown]
    if outlines:
        inside = space.inside(coords + tile / 2, outlines)
        columns["inside"], within, cut = (
            inside.astype(float),
            inside[shown],
            tiling.otsu_threshold(s),
        )
        result.update(
            auc=stats.roc_auc(within, s),
            dice=histcode.dice(s > cut, within),
            all_dice=histcode.dice(np.ones_like(within), within),
        )
        text += [
            "## Outline" + f" of {o.regions}" * bool(o.regions),
            "",
            f"{within.sum():,} of {len(within):,} tiles have "
            f"their centre inside. AUC {result['auc']:.3f}; Dice of the tiles above {cut:.3g} (Otsu of the scores, "
            f"which knows no outline) {result['dice']:.3f}, of all tiles {result['all_dice']:.3f}.",
            "",
        ]
    if cells:
        counts = {c: space.count_points(xy, coords, tile) for c, xy in cells.items()}
        columns.update({f"cells: {c}": n for c, n in counts.items()})
        r, p = space.shift_p(
            s, np.stack([n[shown] for n in counts.values()], 1), [coords[shown]], SHIFTS, o.seed
        )
        result["cells"] = dict(zip(counts, r))
        text += [
            "## Cells in each tile",
            "",
            f"p: a spatial shift of the scores ({SHIFTS} of them) gives an R as high.",
            "",
            table(
                ("cells", "on tiles", "R", "p"),
                [
                    (c, f"{n.sum():,}", f"{x:.3f}", f"{y:.3f}")
                    for (c, n), x, y in zip(counts.items(), r, p)
                ],
            ),
            "",
        ]
    folder = run["folder"] / "heatmaps" / label / name
    with whole_folder(folder) as work:
        rgb, _ = tiling.thumbnail(slide, mpp, max(W, H) * mpp / 1500)
        title = f"{label} on {name}"
        draw_heatmap(
            work / "map.png", rgb, (W, H), mpp, coords[shown], tile, s, title, score, None, outlines
        )
        draw_gallery(
            work / "gallery.png",
            slide,
            coords[shown],
            tile,
            s,
            f"{title}: highest and lowest tiles",
        )
        save_csv(
            work / "tiles.csv",
            ("x", "y", *columns),
            (
                (*xy, *("" if np.isnan(v) else f"{v:.6g}" for v in row))
                for xy, row in zip(coords, zip(*columns.values()))
            ),
        )
        measured = np.stack(list(columns.values()), 1)
        save_json(
            work / "tiles.geojson", tiles_geojson(coords - origin, tile, measured, list(columns))
        )
        save_text(work / "report.md", text)
    return result


def run(o):
    """Where a run's models look: attention laid back on the slide, or what each tile adds to a gene's prediction, against
    the pathologist's outline where there is one."""
    need_matplotlib()
    run, device, failed = load_run(o.run, o.pooling), pick_device(o.device), {}
    saved, appliers = run["folds"], [apply_heads(s, device) for s in run["folds"]]
    kind, own = saved[0]["kind"], run["config"].get("per_gene", False)
    if kind == "diagnosis" and o.genes:
        raise InputError(
            f"--genes {o.genes}: {run['folder']} is a diagnosis; give a run of expression"
        )
    if own and not o.genes:
        raise InputError(f"{run['folder']} has a network for each gene: name some with --genes")
    chosen = pick_genes(o.genes, saved[0]["genes"]) if o.genes else [None]
    for gene in (saved[0]["genes"][j] for j in chosen if j is not None):
        if Path(gene).name != gene or gene == "..":
            raise InputError(
                f"--genes: gene {gene!r} can't name a map's folder; rename it in the expression table"
            )
    score = o.score or (
        "attention" if kind == "diagnosis" or own or not o.genes else "contribution"
    )
    if score == "attention" and o.genes and not own:
        raise InputError(
            f"--score attention --genes {o.genes}: the attention of this run is one for all genes; leave --genes "
            "out, or give a run with --per-gene"
        )
    if score == "contribution" and not o.genes and kind != "diagnosis":
        raise InputError("--score contribution: to which gene? name it with --genes")
    if kind == "diagnosis" and score == "contribution":
        contributions(
            saved[0], np.zeros((2, saved[0]["n_features"]), np.float32), np.ones((1, 2)) / 2, 0
        )  # or it can't be
    results, seen = {}, 0
    for options, home, into, source, name in each_slide(run, o, failed):
        try:
            place = every_tile(run, options, home, into, source, name)
            for j in chosen:
                label = (saved[0]["genes"][j] if j is not None else run["config"]["command"]) + (
                    f"-{score}"
                    if score != ("attention" if j is None or own else "contribution")
                    else ""
                )
                got = map_slide(
                    run, options, appliers, home, place, source, name, label, j or 0, score
                )
                results.setdefault(label, []).append(got)
                print(
                    f"{name}, {label}: {got['tiles']:,} tiles, {got['use']} of {len(saved)} models"
                    + (
                        f"; outline AUC {got['auc']:.3f}, Dice {got['dice']:.3f} (all tiles {got['all_dice']:.3f})"
                        if "auc" in got
                        else ""
                    )
                    + "".join(
                        f"; {c} R {r:.3f}"
                        for c, r in got.get("cells", {}).items()
                        if c != "all cells"
                    )
                    + f" -> {run['folder'] / 'heatmaps' / label / name}",
                    flush=True,
                )
            seen += 1
        except (InputError, OSError) as e:
            failed[name] = str(e)
    for label, each in results.items():
        if len(each) > 1:
            summarise_maps(run["folder"] / "heatmaps" / label / "summary.md", label, each)
    return report_failures(failed, seen + len(failed), run["folder"] / "heatmaps")


def summarise_maps(path, label, each):
    """summary.md of a label's slides, and its line."""
    outlined = [e for e in each if not math.isnan(e.get("auc", math.nan))]
    lines = []
    if outlined:
        auc, d, base = (np.array([e[k] for e in outlined]) for k in ("auc", "dice", "all_dice"))
        lines.append(
            f"{label}, {len(outlined)} slides with an outline that divides their tiles: AUC mean {auc.mean():.3f}, "
            f"median {np.median(auc):.3f}, above .5 on {(auc > 0.5).sum()}; Dice mean {d.mean():.3f}, of all tiles "
            f"{base.mean():.3f}"
        )
    kinds = dict.fromkeys(c for e in each for c in e.get("cells", {}))
    for c in kinds:
        r = np.array(
            [e["cells"][c] for e in each if not math.isnan(e.get("cells", {}).get(c, math.nan))]
        )
        if len(r):
            lines.append(
                f"{label} and {c} per tile, {len(r)} slides: R mean {r.mean():.3f}, median {np.median(r):.3f}"
            )
    print("\n".join(lines))
    show = lambda v: "" if v is None or math.isnan(v) else f"{v:.3f}"
    save_text(
        path,
        [
            f"# {label}: {len(each)} slides",
            "",
            *(line + "\n" for line in lines),
            table(
                ("slide", "tiles", "AUC", "Dice", "Dice of all tiles", *(f"R {c}" for c in kinds)),
                [
                    (
                        e["name"],
                        e["tiles"],
                        *(show(e.get(k)) for k in ("auc", "dice", "all_dice")),
                        *(show(e.get("cells", {}).get(c)) for c in kinds),
                    )
                    for e in each
                ],
            ),
            "",
        ],
    )
    print(f"report: {path}")


def options(parser):
    slides_of_run(parser)
    a = parser.add_argument
    a(
        "--genes",
        help="with a run of expression: a map for each of A,B,C (Fig. 11: CD3D,CD247,CD19,PTEN)",
    )
    a(
        "--regions",
        metavar="CLASS",
        help="class of the outlines in regions/ to compare with (default: all)",
    )
    a(
        "--score",
        choices=("attention", "contribution"),
        help="attention (default without --genes, and of networks for one "
        "gene each): how much a tile counts; contribution (default with --genes): what it adds to the prediction, of a "
        "diagnosis to the log odds of the positive class",
    )
