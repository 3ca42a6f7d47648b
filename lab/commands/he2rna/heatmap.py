"""python he2rna.py heatmap RUN SLIDE... --genes A,B: where on its slide a gene is expressed.

The score of every tissue tile for one gene, or the mean of several, laid over the slide; and
whether the truth agrees, where the cohort has it in points/, spots/ or regions/. Only models that
did not learn from the slide's patient speak of it. [HE2RNA Fig. 4; Methods, Visual spatialization]
A slide takes seconds, or the time of describing its tiles where training saw a sample of them.
Writes RUN/heatmaps/GENES/SLIDE/: map.png, gallery.png, cells.png, tiles.csv, tiles.geojson,
provenance.csv, spots.csv, report.md; summary.md of several slides beside.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

import he2rna
import stats
import tiling
from lab import space
from lab.application import each_slide, every_tile, held_out, pick_genes
from lab.cohort.features import load_features
from lab.cohort.places import read_outlines, read_places
from lab.commands.options import add_options, report_failures
from lab.devices import pick_device
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, digest, few, save_csv, save_json, save_text
from lab.he2rna.options import check_name, slide_options
from lab.he2rna.report import section
from lab.he2rna.runs import bag_of, load_run, model_of
from lab.he2rna.spatial import (
    SHIFTS,
    against_cells,
    as_log,
    group_rows,
    spot_rows,
    spot_summary,
)
from lab.progress import table
from lab.show.gallery import draw_gallery
from lab.show.maps import draw_heatmap, map_ground, whole_folder
from lab.show.plots import draw_scatter, need_matplotlib


def options(parser):
    a = parser.add_argument
    slide_options(a)
    a("--genes", required=True, metavar="A,B|FILE", help="one gene, or several whose mean is drawn")
    a("--name", help="of the folder in RUN/heatmaps/ (default: the genes)")
    a(
        "--cells",
        default="all cells",
        metavar="CLASS",
        help="class of points/ to draw and to count in the best tiles (default: all cells; the "
        "report has a row for each)",
    )
    a(
        "--regions",
        metavar="CLASS",
        help="class of the outlines in regions/ to compare with (default: all)",
    )
    a(
        "--provenance",
        metavar="GENE",
        help="the gene whose weight of every tile is written (default: the first)",
    )
    add_options(parser, of_run=True)


class Asked(NamedTuple):
    """What is drawn of every slide, and by whom."""

    run: dict
    models: list  # of each fold, with the outputs of the genes
    genes: list
    gene: str  # whose weight of every tile is written
    label: str
    cells: str
    group: list  # lines on the slides of the run


@dataclass
class SlideMap:
    """What is shown and said of one slide."""

    name: str
    use: list  # folds of the models that speak of it
    coords: np.ndarray  # (T, 2) level-0 pixels
    tile: float  # edge, level-0 pixels
    scores: np.ndarray  # (T,)
    columns: dict  # of tiles.csv {name: (T,)}
    lines: list = field(default_factory=list)  # of report.md
    cells: list = field(default_factory=list)  # rows of against_cells
    spots: tuple | None = None  # what spot_rows takes of a slide
    said: str = ""  # in a word, for the terminal


def run(o):
    need_matplotlib()
    asked = what_is_asked(o)
    folder = asked.run["folder"] / "heatmaps" / asked.label
    maps, failed = [], {}
    for options, home, into, source, name in each_slide(asked.run, o, failed):
        try:
            into = every_tile(asked.run, options, home, into, source, name)
            done = map_slide(asked, options, folder, home, into, source, name)
        except (InputError, OSError) as e:
            failed[name] = str(e)
            continue
        maps.append(done)
        use = ", ".join(map(str, done.use))
        print(f"{name}: {len(done.coords):,} tiles, models of folds {use}{done.said}", flush=True)
    if len(maps) > 1:
        write_summary(folder / "summary.md", asked, maps, o.seed)
    return report_failures(failed, len(maps) + len(failed), folder)


def what_is_asked(o):
    """The run's models for the genes asked for, and what is known of these over its slides."""
    run = load_run(o.run)
    chosen = pick_genes(o.genes, run["genes"])
    genes = [run["genes"][j] for j in chosen]
    label = o.name or "-".join(genes)
    if not o.name and len(genes) > 4:
        label = f"{genes[0]}-and-{len(genes) - 1}-more-{digest(genes)[:6]}"
    check_name(label)
    gene = o.provenance or genes[0]
    if gene not in genes:
        raise InputError(f"--provenance {gene}: not one of --genes {few(genes)}")
    device = pick_device(o.device)
    models = [model_of(saved, device, chosen).eval() for saved in run["folds"]]
    rows = group_rows(run, chosen)
    for cancer, slides, r, interval, _ in rows:
        print(f"over the slides of the run: {cancer} R {r} ({interval}; n {slides})")
    title = genes[0] if len(genes) == 1 else "Mean of the genes"
    header = ("cancer", "slides", "R of mean prediction and mean expression", "95 %", "p")
    group = section(f"{title} over the slides of the run", table(header, rows))
    return Asked(run, models, genes, gene, label, o.cells, group)


def map_slide(asked, o, folder, home, into, source, name):
    """Score a slide's tiles, compare them with the truth, write FOLDER/NAME/ at once."""
    run = asked.run
    features, coords = load_features(into, source, name)
    slide, size, mpp, tile = map_ground(home, into, source, name, coords, o)
    use = held_out(run, name, home, o.all_models)
    models = [asked.models[f] for f in use]
    each = he2rna.score_tiles(models, features)  # (T, genes)
    scores = each.mean(1).astype(np.float64)
    columns = {"score": scores}
    if len(asked.genes) > 1:
        columns.update(zip(asked.genes, each.T))
    done = SlideMap(name, use, coords, tile, scores, columns)
    done.lines = first_lines(asked, done, o, tile * mpp)

    truth = home
    if not any((home / kind).is_dir() for kind in ("points", "spots", "regions")):
        truth = run["cohort"]
    um, origin = qupath_frame(slide, mpp)
    cells, spots = read_places(truth, name, um, origin)
    outlines = read_outlines(truth, name, origin, o.regions)
    if cells:
        add_cells(done, cells, asked.cells)
    tables = {}
    if spots:
        tables["spots.csv"] = add_spots(done, spots, run, features)
    if outlines:
        add_outline(done, outlines, o.regions)
    done.lines += asked.group
    tables["provenance.csv"] = add_provenance(done, asked, models, features, into)

    with whole_folder(folder / name) as work:
        rgb, _ = tiling.thumbnail(slide, mpp, max(size) * mpp / 1500)
        title = f"{asked.label} on {name}"
        unit = "score, log$_{10}$(1 + FPKM-UQ)"
        points = cells and cells[asked.cells]
        counts = cells and done.columns[f"cells: {asked.cells}"]
        place = (coords, tile, scores)
        draw_heatmap(work / "map.png", rgb, size, mpp, *place, title, unit, points, outlines)
        about = f"{title}: highest and lowest tiles"
        draw_gallery(work / "gallery.png", slide, *place, about, counts, asked.cells)
        if cells:
            axes = ("score", f"{asked.cells} in a tile")
            draw_scatter(work / "cells.png", scores, counts, *axes, title)
        write_tables(work, done, origin, tables)
    return done


def first_lines(asked, done, o, tile_um):
    """The report's title, and who speaks of the slide."""
    who = ", none of which knows the slide"
    if len(done.use) < len(asked.models):
        who = ", which did not learn from its patient"
    elif o.all_models:
        who = ", also those that learned from its patient"
    folds = ", ".join(map(str, done.use))
    return [
        f"# {asked.label} on {done.name}",
        "",
        f"{len(done.coords):,} tiles of {tile_um:.0f} µm; score: mean of {few(asked.genes)} in "
        f"log10(1 + FPKM-UQ), of the models of fold {folds}{who}. Run {asked.run['folder']}.",
        "",
        "![Map](map.png)",
        "",
        "![Highest and lowest tiles](gallery.png)",
        "",
    ]


def add_cells(done, cells, kind):
    """Compare the scores with the cells on each tile; `kind` is drawn."""
    if kind not in cells:
        print(f"{done.name}: no cells of class {kind}; it has {few(list(cells))}")
        cells[kind] = np.zeros((0, 2))
    counts, done.cells = against_cells(done.scores, cells, done.coords, done.tile)
    done.columns.update((f"cells: {name}", n) for name, n in counts.items())
    rows = []
    for name, n, r, p, rho, n_best, best, of_all in done.cells:
        if name == kind:
            done.said += f"; {kind}: R {r:.3f} (p {p:.3f})"
        rows.append(
            (*cell_figures(name, n, r, p, rho), f"{best:g} ({n_best} tiles)", f"{of_all:g}")
        )
    header = ("cells", "on tiles", "R", "p", "Spearman", "median in the best tiles", "in all")
    done.lines += section(
        "Cells in each tile",
        f"p: a spatial shift of the scores ({SHIFTS} of them) gives an R as high.",
        table(header, rows),
        "![Scores and cells](cells.png)",
    )


def cell_figures(name, n, r, p, rho):
    return name, f"{n:,}", f"{r:.3f}", f"{p:.3f}", f"{rho:.3f}"


def add_spots(done, spots, run, features):
    """Compare what was measured on spots with the scores of their tiles -> rows of spots.csv."""
    places, measured = spots
    on_tile = space.holder(places, done.coords, done.tile)  # (m,) -1: on none
    held = on_tile >= 0
    if held.sum() < 2:
        return []
    at = {gene: j for j, gene in enumerate(run["genes"])}
    own = [gene for gene in measured if gene in at]
    pairs = {}
    if own:
        outputs = [at[gene] for gene in own]
        models = [model_of(run["folds"][f], "cpu", outputs) for f in done.use]
        scores = he2rna.score_tiles(models, features[on_tile[held]])
        for j, gene in enumerate(own):
            pairs[gene] = scores[:, j], as_log(measured[gene][held])
    for name, values in measured.items():
        if name not in at:
            pairs[name] = done.scores[on_tile[held]], values[held]
    done.spots = places[held], pairs
    rows = spot_rows([done.spots])
    found = f"{held.sum()} of {len(held)} spots lie on a tile: {spot_summary(rows, at)}."
    done.lines += section("Spots", f"{found} Each column: spots.csv")
    return [(name, f"{r:.4f}", f"{p:.4f}") for name, r, p in rows]


def add_outline(done, outlines, kind):
    """Compare the scores with what lies inside outlines."""
    inside = space.inside(done.coords + done.tile / 2, outlines)
    auc = stats.roc_auc(inside, done.scores)
    done.columns["inside"] = inside.astype(int)
    done.said += f"; outline AUC {auc:.3f}"
    done.lines += section(
        f"Outline of {kind}" if kind else "Outline",
        f"{inside.sum():,} of {len(inside):,} tiles have their centre inside; AUC of the scores "
        f"{auc:.3f}",
    )


def add_provenance(done, asked, models, features, into):
    """How much each tile counts in the prediction of a gene -> rows of provenance.csv.

    A row: fold, place, tiles of the super-tile, its weight, its score; the sum of weight x score is
    the prediction. [HE2RNA Methods, Model architecture]
    """
    config, j = asked.run["config"], asked.genes.index(asked.gene)
    bag, row_of = bag_of(features, done.coords, config)
    tiles = np.bincount(row_of)
    places = np.stack([np.bincount(row_of, axis) / tiles for axis in done.coords.T], 1)
    rows, sums = [], []
    weights = np.zeros(len(features))
    for fold, model in zip(done.use, models):
        scores = he2rna.score_tiles([model], bag)[:, j].astype(np.float64)
        weight = he2rna.provenance(scores, model.ks)
        weights += (weight / tiles)[row_of] / len(models)
        sums.append(weight @ scores)
        for (x, y), n, w, score in zip(places, tiles, weight, scores):
            rows.append((fold, f"{x:.0f}", f"{y:.0f}", n, f"{w:.9g}", f"{score:.9g}"))
    done.columns[f"weight: {asked.gene}"] = weights
    done.said += f"; {asked.gene} {np.mean(sums):.4f}"
    text = (
        f"{asked.gene}: {np.mean(sums):.6f} in log10(1 + FPKM-UQ), the sum of weight x score over "
        f"the {config['bags']} in provenance.csv, mean of the folds' "
        f"{few([f'{v:.6f}' for v in sums])}. tiles.csv has each tile's weight; a super-tile's is "
        "shared among its tiles."
    )
    if {"padding", "relu"} & set(config["code"]):
        text += " The run's own prediction differs: its padding or ReLU is the authors'."
    if into.name == "all-tiles":
        text += " This is of every tissue tile; predict uses the sample that training used."
    done.lines += section("Where the prediction comes from", text)
    return rows


def write_tables(work, done, origin, tables):
    """tiles.csv, tiles.geojson in QuPath's frame, and the tables that were made on the way."""
    values = np.stack(list(done.columns.values()), 1)
    rows = [(*xy, *(f"{v:.6g}" for v in row)) for xy, row in zip(done.coords, values)]
    save_csv(work / "tiles.csv", ("x", "y", *done.columns), rows)
    shapes = tiles_geojson(done.coords - origin, done.tile, values, list(done.columns))
    save_json(work / "tiles.geojson", shapes)
    headers = {
        "spots.csv": ("column", "R", "p"),
        "provenance.csv": ("fold", "x", "y", "tiles", "weight", "score"),
    }
    for name, rows in tables.items():
        if rows:
            save_csv(work / name, headers[name], rows)
    save_text(work / "report.md", done.lines)


def write_summary(path, asked, maps, seed):
    """summary.md of several slides: cells slide by slide, spots of the same models together."""
    said = f"Run {asked.run['folder']}. Each slide has its own folder and report beside this file."
    lines = [f"# {asked.label}: {len(maps)} slides", "", said, "", *asked.group]
    lines += cells_of_slides(asked, maps)
    rows = []
    for use in sorted({tuple(done.use) for done in maps if done.spots}):
        spots = [done.spots for done in maps if done.spots and tuple(done.use) == use]
        n = sum(len(places) for places, _ in spots)
        found = spot_summary(spot_rows(spots, seed), asked.run["genes"])
        folds = ", ".join(map(str, use))
        rows.append((folds, len(spots), n, found))
        print(f"spots of {len(spots)} slides, models of folds {folds}: {n} spots; {found}")
    if rows:
        lines += section(
            "Spots",
            "R over the spots of all slides that the same models speak of; p against scores shifted "
            "within each slide.",
            table(("models", "slides", "spots", "found"), rows),
        )
    save_text(path, lines)
    print(f"report: {path}")


def cells_of_slides(asked, maps):
    """A section for each class of cells; the table of slides for the one that is drawn."""
    project = {row["slide"]: row["project"] for row in asked.run["rows"]}
    lines = []
    for kind in dict.fromkeys(row[0] for done in maps for row in done.cells):
        rows, found = [], []
        for done in maps:
            for name, n, r, p, rho, _, best, of_all in done.cells:
                if name == kind:
                    found.append((r, p))
                    of = project.get(done.name, "new"), ", ".join(map(str, done.use))
                    figures = cell_figures(done.name, n, r, p, rho)
                    rows.append((*figures, f"{best:g}", f"{of_all:g}", *of))
        r, p = np.array(found).T
        line = (
            f"{kind}: R per tile, mean over {(~np.isnan(r)).sum()} slides {np.nanmean(r):.3f}, "
            f"median {np.nanmedian(r):.3f}; p < {he2rna.ALPHA} in {(p < he2rna.ALPHA).sum()} of them"
        )
        parts = [line]
        if kind == asked.cells:
            print(line)
            header = ("slide", "cells", "R", "p", "Spearman", "median in the best", "in all")
            parts.append(table((*header, "project", "models"), rows))
        lines += section(kind, *parts)
    return lines
