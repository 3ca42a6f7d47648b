"""Where the models of a run look: attention laid back on the slide, or what its tiles add.

    python histcode.py heatmap RUN SLIDE...                      attention [HistCode Fig. 10]
    python histcode.py heatmap RUN SLIDE... --genes CD3D,CD19    of fold changes [HistCode Fig. 11]

Compared with cells in points/ and outlines in regions/, where the cohort has them. Writes
RUN/heatmaps/LABEL/SLIDE/: map.png, gallery.png, tiles.csv, tiles.geojson, report.md; summary.md
of several slides beside.
"""

from dataclasses import dataclass, field
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

SHIFTS = 199  # random shifts behind a p over tiles  [ours]
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


@dataclass
class SlideMap:
    """What is known of the tiles of one slide."""

    name: str
    coords: np.ndarray  # (T, 2) level-0 pixels
    tile: float  # edge, level-0 pixels
    scores: np.ndarray  # (T,), nan where a tile has none
    columns: dict  # of tiles.csv {name: (T,)}
    lines: list  # of report.md
    figures: dict = field(default_factory=dict)  # {name: value} of summary.md
    said: str = ""  # for the terminal


def run(o):
    need_matplotlib()
    run = load_run(o.run, o.pooling)
    every = what_is_asked(run, o)
    maps, failed, seen = {asked.label: [] for asked in every}, {}, 0
    for options, home, into, source, name in each_slide(run, o, failed):
        try:
            into = every_tile(run, options, home, into, source, name)
            for asked in every:
                maps[asked.label].append(map_slide(asked, options, home, into, source, name))
            seen += 1
        except (InputError, OSError) as e:
            failed[name] = str(e)
    for label, slides in maps.items():
        if len(slides) > 1:
            write_summary(run["folder"] / "heatmaps" / label / "summary.md", label, slides)
    return report_failures(failed, seen + len(failed), run["folder"] / "heatmaps")


def what_is_asked(run, o):
    """A map for each gene of --genes, or one of the whole run."""
    models, command = run["folds"], run["config"]["command"]
    per_gene = run["config"].get("per_gene", False)
    usual = "contribution" if o.genes and not per_gene else "attention"
    score = o.score or usual
    if command == "diagnose" and o.genes:
        raise InputError(
            f"--genes {o.genes}: {run['folder']} is a diagnosis; give a run of expression"
        )
    if per_gene and not o.genes:
        raise InputError(f"{run['folder']} has a network for each gene: name some with --genes")
    if score == "attention" and o.genes and not per_gene:
        raise InputError(
            f"--score attention --genes {o.genes}: the attention of this run is one for all "
            "genes; leave --genes out, or give a run with --per-gene"
        )
    if score == "contribution" and not o.genes:
        if command != "diagnose":
            raise InputError("--score contribution: to which gene? name it with --genes")
        h = np.zeros((2, models[0]["n_features"]), np.float32)
        contributions(models[0], h, np.full((1, 2), 0.5), 0)  # refuses what is no sum over tiles
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


def map_slide(asked, o, home, into, source, name):
    """Score a slide's tiles, compare them with the truth, write LABEL/NAME/ at once."""
    h, coords = load_features(into, source, name)
    if len(h) < 2:
        raise InputError("one tile: no highest and lowest")
    slide, size, mpp, tile = map_ground(home, into, source, name, coords, o)
    use = held_out(asked.run, name, home, o.all_models)
    scores = map_scores(asked, use, h)
    done = SlideMap(name, coords, tile, scores, {asked.score: scores}, [])
    done.lines = first_lines(asked, done, use, tile * mpp, o.all_models)
    truth = home
    if not any((home / kind).is_dir() for kind in ("points", "regions")):
        truth = asked.run["cohort"]
    um, origin = qupath_frame(slide, mpp)
    outlines = read_outlines(truth, name, origin, o.regions)
    cells, _ = read_places(truth, name, um, origin)
    if outlines:
        add_outline(done, outlines, o.regions)
    if cells:
        add_cells(done, cells, o.seed)
    folder = asked.run["folder"] / "heatmaps" / asked.label / name
    with whole_folder(folder) as work:
        rgb, _ = tiling.thumbnail(slide, mpp, max(size) * mpp / 1500)
        shown = ~np.isnan(scores)
        place = (coords[shown], tile, scores[shown])
        title = f"{asked.label} on {name}"
        draw_heatmap(
            work / "map.png", rgb, size, mpp, *place, title, asked.score, outlines=outlines
        )
        draw_gallery(work / "gallery.png", slide, *place, f"{title}: highest and lowest tiles")
        write_tables(work, done, origin)
    models = f"{len(use)} of {len(asked.appliers)} models"
    print(f"{name}, {asked.label}: {len(h):,} tiles, {models}{done.said} -> {folder}", flush=True)
    return done


def first_lines(asked, done, use, tile_um, everyone):
    """The report's title, what the scores are and who speaks of the slide."""
    who = "none of which learned from the slide's patient"
    if everyone:
        who = "also those that learned from its patient"
    n, scored = len(done.scores), np.count_nonzero(~np.isnan(done.scores))
    less = f"; {scored:,} tiles have one" if scored < n else ""
    return [
        f"# {asked.label} on {done.name}",
        "",
        f"{n:,} tiles of {tile_um:.0f} µm; {MEANING[asked.score]}{less}; mean of {len(use)} of "
        f"{len(asked.appliers)} models, {who}. Run {asked.run['folder']}.",
        "",
        "![Map](map.png)",
        "",
        "![Highest and lowest tiles](gallery.png)",
        "",
    ]


def add_outline(done, outlines, kind):
    """Compare the scores with what lies inside a pathologist's outlines. [HistCode Fig. 10]

    The map is cut by Otsu of the scores, which knows no outline. [ours]
    """
    inside = space.inside(done.coords + done.tile / 2, outlines)
    done.columns["inside"] = inside.astype(float)
    shown = ~np.isnan(done.scores)
    scores, inside = done.scores[shown], inside[shown]
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


def add_cells(done, cells, seed):
    """Compare the scores with the cells on each tile."""
    counts = {kind: space.count_points(xy, done.coords, done.tile) for kind, xy in cells.items()}
    shown = ~np.isnan(done.scores)
    together = np.stack([n[shown] for n in counts.values()], 1)
    each = space.shift_p(done.scores[shown], together, [done.coords[shown]], SHIFTS, seed)
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
        f"p: a spatial shift of the scores ({SHIFTS} of them) gives an R as high.",
        "",
        table(("cells", "on tiles", "R", "p"), rows),
        "",
    ]


def write_tables(work, done, origin):
    """tiles.csv, the same as GeoJSON in QuPath's frame, and report.md."""
    values = np.stack(list(done.columns.values()), 1)
    rows = []
    for xy, row in zip(done.coords, values, strict=True):
        rows.append([*xy, *("" if np.isnan(v) else f"{v:.6g}" for v in row)])
    save_csv(work / "tiles.csv", ("x", "y", *done.columns), rows)
    shapes = tiles_geojson(done.coords - origin, done.tile, values, list(done.columns))
    save_json(work / "tiles.geojson", shapes)
    save_text(work / "report.md", done.lines)


def write_summary(path, label, slides):
    """summary.md of a label: the figures of each slide, their means and medians."""
    names = dict.fromkeys(name for done in slides for name in done.figures)
    rows = [[done.name, len(done.scores)] for done in slides]
    means, medians = ["mean", ""], ["median", ""]
    for name in names:
        values = np.array([done.figures.get(name, np.nan) for done in slides])
        known = values[~np.isnan(values)]
        for row, value in zip(rows, values, strict=True):
            row.append("" if np.isnan(value) else f"{value:.3f}")
        means.append(f"{known.mean():.3f}" if len(known) else "")
        medians.append(f"{np.median(known):.3f}" if len(known) else "")
    figures = table(("slide", "tiles", *names), [*rows, means, medians])
    save_text(path, [f"# {label}: {len(slides)} slides", "", figures, ""])
    print(f"{figures}\nreport: {path}")
