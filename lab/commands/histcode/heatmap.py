"""Where the models of a run look: attention laid back on the slide, or what its tiles add.

    python histcode.py heatmap RUN SLIDE...                      attention [HistCode Fig. 10]
    python histcode.py heatmap RUN SLIDE... --genes CD3D,CD19    of fold changes [HistCode Fig. 11]

Compared with cells in points/ and outlines in regions/, where the cohort has them. Writes
RUN/heatmaps/LABEL/SLIDE/: map.png, gallery.png, tiles.csv, tiles.geojson, report.md; summary.md
of several slides beside.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from openslide import OpenSlideError

import histcode
import stats
import tiling
from lab import space
from lab.application import each_slide, every_tile, held_out, pick_genes
from lab.cohort.features import load_features
from lab.cohort.truth import truth_of
from lab.commands.histcode.options import slides_of_run
from lab.devices import pick_device
from lab.files import InputError, save_text
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import SUMS, contributions
from lab.histcode.runs import load_run, off_scale
from lab.progress import report_failures, table
from lab.show.maps import map_ground
from lab.show.plots import need_matplotlib
from lab.show.slide_map import SlideMap, lacks_of, table_of_maps, write_map

MEANING = {
    "attention": "attention between 0 (lowest) and 1 (highest tile)",
    "contribution": "contribution: the sum of all and the bias are the prediction",
}


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
        choices=tuple(MEANING),
        help="attention (default without --genes, and of networks for one gene each): how much a "
        "tile counts; contribution (default with --genes): what it adds to the prediction, of a "
        "diagnosis to the log odds of the positive class",
    )


@dataclass
class Asked:
    """What is drawn of every slide: one output of the models."""

    run: dict
    appliers: list  # of each model
    output: int
    score: str
    label: str  # of the folder


def run(o):
    need_matplotlib()
    run = load_run(o.run, o.pooling)
    every = what_is_asked(run, o)
    maps, failed, seen = {asked.label: [] for asked in every}, {}, 0
    for options, slide, into, source in each_slide(run, o, failed):
        try:
            into = every_tile(run, options, slide.home, into, source, slide.name)
            known = what_is_known(run, options, slide, into, source)
            for asked in every:
                maps[asked.label].append(map_slide(asked, options, slide, *known))
            seen += 1
        except (InputError, OSError, OpenSlideError) as e:
            failed[slide.label] = str(e)
    for label, slides in maps.items():
        if len(slides) > 1:
            write_summary(run["folder"] / "heatmaps" / label / "summary.md", label, slides)
    lacks = lacks_of([done for slides in maps.values() for done in slides])
    return report_failures(failed, seen + len(failed), run["folder"] / "heatmaps", lacks=lacks)


def what_is_asked(run, o):
    """A map for each gene of --genes, or one of the whole run."""
    models, command = run["folds"], run["config"]["command"]
    own = run["config"].get("per_gene", False)  # a network for each gene
    usual = "contribution" if o.genes and not own else "attention"
    score = o.score or usual
    of_genes = command == "expression" and (own or score == "contribution")
    if of_genes != bool(o.genes):
        mend = "of no gene alone: leave --genes out"
        if of_genes:
            mend = "of each gene: name some with --genes"
        raise InputError(f"{run['folder']}: in this run of {command} the {score} is {mend}")
    if score == "contribution" and models[0]["pooling"] not in SUMS:
        raise InputError(f"--score contribution: {models[0]['pooling']} is no sum over tiles")
    appliers = [apply_heads(saved, pick_device(o.device)) for saved in models]
    end = "" if score == usual else f"-{score}"
    if not o.genes:
        return [Asked(run, appliers, 0, score, command + end)]
    every = []
    for j in pick_genes(o.genes, models[0]["genes"]):
        gene = models[0]["genes"][j]
        if Path(gene).name != gene or gene == "..":
            raise InputError(
                f"--genes: gene {gene!r} can't name a map's folder; rename it in the expression "
                "table"
            )
        every.append(Asked(run, appliers, j, score, gene + end))
    return every


def map_scores(asked, use, h):
    """(T,) mean of the chosen models: attention from 0 to 1, or contributions.

    nan where no model has one. A tile at neither end adds 0 to a model's output, so that the sum
    and the mean bias are the mean prediction.
    """
    each = []
    for m in use:
        a = asked.appliers[m](h)[1].double().numpy()  # (M, T)
        own = asked.output if len(a) > 1 else 0
        scores = histcode.scale_to_one(a[own])
        if asked.score == "contribution":
            scores = contributions(asked.run["folds"][m], h, a, asked.output)
        if not np.isfinite(a).all() or np.isinf(scores).any():
            raise InputError(off_scale(h))
        each.append(scores)
    mean = np.nan_to_num(each).mean(0)
    return np.where(np.isnan(each).all(0), np.nan, mean)


def what_is_known(run, o, slide, into, source):
    """A slide's features, what its map is drawn on, its Truth, and the models that may speak."""
    h, coords = load_features(into, source, slide.name)
    if len(h) < 2:
        raise InputError("one tile: no highest and lowest")
    ground = map_ground(slide.home, into, source, slide.name, coords, o)
    home = slide.home
    if slide.own and not any((home / kind).is_dir() for kind in ("points", "regions")):
        home = run["cohort"]
    picture, _, mpp, tile, coords = ground
    truth = truth_of(home, slide.name, picture, mpp, coords, tile, None, o.regions)
    return h, ground, truth, held_out(run, slide, o.all_models)


def map_slide(asked, o, slide, h, ground, truth, use):
    """Score a slide's tiles, compare them with the truth, write its folder at once."""
    scores = map_scores(asked, use, h)
    title, columns = f"{asked.label} on {slide.label}", {asked.score: scores}
    done = SlideMap(slide.label, title, *ground, scores, asked.score, columns)
    done.lines = first_lines(asked, done, use, o.all_models)
    done.outlines, done.lacks = truth.outlines, truth.lacks
    if truth.outlines:
        add_outline(done, o.regions)
    if truth.cells:
        add_cells(done, truth.cells)
    done.lines += truth.lines()
    folder = asked.run["folder"] / "heatmaps" / asked.label / slide.label
    write_map(folder, done, truth.origin)
    said = f"{len(h):,} tiles, {len(use)} of {len(asked.appliers)} models{done.said}"
    print(f"{slide.label}, {asked.label}: {said} -> {folder}", flush=True)
    return done


def first_lines(asked, done, use, everyone):
    """The report's title, what the scores are and who speaks of the slide."""
    who = "none of which learned from the slide's patient"
    if everyone:
        who = "also those that learned from its patient"
    n, scored = len(done.scores), np.count_nonzero(~np.isnan(done.scores))
    less = f"; {scored:,} tiles have one" if scored < n else ""
    return [
        f"# {done.title}",
        "",
        f"{n:,} tiles of {done.tile * done.mpp:.0f} µm; {MEANING[asked.score]}{less}; mean of "
        f"{len(use)} of {len(asked.appliers)} models, {who}. Run {asked.run['folder']}.",
        "",
        "![Map](map.png)",
        "",
        "![Highest and lowest tiles](gallery.png)",
        "",
    ]


def add_outline(done, kind):
    """Compare the scores with what lies inside a pathologist's outlines. [HistCode Fig. 10]

    The map is cut by Otsu of the scores, which knows no outline. [ours]
    """
    inside = space.inside(done.coords + done.tile / 2, done.outlines)
    done.columns["inside"] = inside.astype(float)
    shown = ~np.isnan(done.scores)
    scores, inside = done.scores[shown], inside[shown]
    if inside.all() or not inside.any():
        done.lacks.append(f"{inside.sum():,} of {len(inside):,} tiles lie in the outlines: no AUC")
        return
    cut = tiling.otsu_threshold(scores)
    auc = stats.roc_auc(inside, scores)
    dice = histcode.dice(scores > cut, inside)
    of_all = histcode.dice(np.ones_like(inside), inside)
    done.figures.update({"AUC": auc, "Dice": dice, "Dice of all tiles": of_all})
    done.said += f"; outline AUC {auc:.3f}, Dice {dice:.3f} (all tiles {of_all:.3f})"
    done.lines += [
        f"## Outline of {kind}" if kind else "## Outline",
        "",
        f"{inside.sum():,} of {len(inside):,} tiles have their centre inside. AUC {auc:.3f}; Dice "
        f"of the tiles above {cut:.3g} (Otsu of the scores, which knows no outline) {dice:.3f}, "
        f"of all tiles {of_all:.3f}.",
        "",
    ]


def add_cells(done, cells):
    """Compare the scores with the cells on each tile."""
    counts = {kind: space.count_points(xy, done.coords, done.tile) for kind, xy in cells.items()}
    shown = ~np.isnan(done.scores)
    together = np.stack([n[shown] for n in counts.values()], 1)
    each = space.spatial_p(done.scores[shown], together, [done.coords[shown]])
    rows = []
    for (kind, n), r, p in zip(counts.items(), *each, strict=True):
        done.columns[f"cells: {kind}"] = n
        done.figures[f"R {kind}"] = r
        rows.append((kind, f"{n.sum():,}", f"{r:.3f}", f"{p:.3f}"))
        if kind != "all cells":
            done.said += f"; {kind} R {r:.3f}"
    done.lines += [
        "## Cells in each tile",
        "",
        space.P_MEANS,
        "",
        table(("cells", "on tiles", "R", "p"), rows),
        "",
    ]


def write_summary(path, label, maps):
    """summary.md of a label: the figures of each slide, their means and medians."""
    figures = table_of_maps(maps)
    save_text(path, [f"# {label}: {len(maps)} slides", "", figures, ""])
    print(f"{figures}\nreport: {path}")
