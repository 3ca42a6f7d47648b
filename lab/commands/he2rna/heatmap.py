"""python he2rna.py heatmap RUN SLIDE... --genes A,B: where on its slide a gene is expressed.

The score of every tissue tile for one gene, or the mean of several, laid over the slide; and
whether the truth agrees, where the cohort has it in points/, spots/ or regions/. Only models that
did not learn from the slide's patient speak of it. [HE2RNA Fig. 4; Methods, Visual spatialization]
A slide takes seconds, or the time of describing its tiles where training saw a sample of them.
Writes RUN/heatmaps/GENES/SLIDE/: map, gallery and cells as .png and .svg, tiles.csv, tiles.geojson,
provenance.csv, spots.csv, report.md; summary.md of several slides beside.
"""

from dataclasses import dataclass

import numpy as np
from openslide import OpenSlideError

import he2rna
import stats
from lab import space
from lab.application import each_slide, every_tile, held_out, pick_genes
from lab.cohort.features import load_features
from lab.cohort.markers import marked_class
from lab.cohort.places import EVERY
from lab.cohort.scale import unit_of_run
from lab.cohort.truth import truth_of
from lab.commands.he2rna.options import slide_options
from lab.commands.slide_options import add_options
from lab.devices import pick_device
from lab.files import InputError, digest, few, save_text
from lab.he2rna.effects import apart_said, who_stands_apart
from lab.he2rna.runs import bag_of, load_run, model_of
from lab.he2rna.spatial import (
    against_cells,
    as_log,
    asked_first,
    group_rows,
    name_of,
    predictions_of,
    spot_rows,
    spot_summary,
)
from lab.progress import report_failures, table
from lab.provenance import of_prediction, warning
from lab.runs import check_name
from lab.show.maps import map_ground, span_of, why_no_tile
from lab.show.plots import need_matplotlib
from lab.show.report import section
from lab.show.slide_map import SlideMap, drawn_cells, lacks_of, table_of_maps, write_map
from lab.words import find_word

CELL_FIGURES = ("R", "p", "Spearman", "median in the best tiles", "in all")


def options(parser):
    a = parser.add_argument
    slide_options(a)
    a("--genes", required=True, metavar="A,B|FILE", help="one gene, or several whose mean is drawn")
    a("--name", help="of the folder in RUN/heatmaps/ (default: the genes)")
    a(
        "--cells",
        metavar="CLASS",
        help="class of points/ to compare with and to draw in front (default: the cells that the "
        "genes are known to mark, as CD3 lymphocytes, else all; the report has a row for each); a "
        "slide without any of it ends in status 1",
    )
    a(
        "--regions",
        metavar="CLASS",
        help="class of the outlines in regions/ to compare with (default: all)",
    )
    add_options(parser, of_run=True)


@dataclass
class Asked:
    """What is drawn of every slide."""

    run: dict
    models: list  # of each fold, with the outputs of the genes
    genes: list
    label: str
    name: str  # of what is drawn, in words
    cells: str | None
    predicted: np.ndarray  # (S, 1) of the run's slides
    measured: np.ndarray  # (S, 1)
    projects: np.ndarray  # (S,)
    group: list  # lines on the slides of the run


def run(o):
    need_matplotlib()
    asked = what_is_asked(o)
    folder = asked.run["folder"] / "heatmaps" / asked.label
    maps, failed = [], {}
    for options, slide, into, source in each_slide(asked.run, o, failed):
        try:
            into = every_tile(asked.run, options, slide.home, into, source, slide.name)
            done = map_slide(asked, options, folder, slide, into, source)
        except (InputError, OSError, OpenSlideError) as e:
            failed[slide.label] = str(e)
            continue
        maps.append(done)
        models = done.about["models"]
        print(
            f"{done.name}: {len(done.coords):,} tiles, models of folds {models}{done.said}",
            flush=True,
        )
    if len(maps) > 1:
        write_summary(folder / "summary.md", asked, maps)
    return report_failures(failed, len(maps) + len(failed), folder, lacks=lacks_of(maps))


def what_is_asked(o):
    """The run's models for the genes asked for, and what is known of these over its slides."""
    run = load_run(o.run)
    chosen = pick_genes(o.genes, run["genes"])
    genes = [run["genes"][j] for j in chosen]
    label = o.name or "-".join(genes)
    if not o.name and len(genes) > 4:
        label = f"{genes[0]}-and-{len(genes) - 1}-more-{digest(genes)[:6]}"
    check_name(label)
    device = pick_device(o.device)
    models = [model_of(saved, device, chosen) for saved in run["folds"]]
    z = predictions_of(run)
    rows = group_rows(run, z, chosen)
    for cancer, slides, r, interval, _ in rows:
        print(f"over the slides of the run: {cancer} R {r} ({interval}; n {slides})")
    apart = list(apart_said(who_stands_apart(z["truth"], z["patient"], z["project"])))
    for remark in apart:
        print(remark)
    name = name_of(genes)
    header = ("cancer", "slides", "R of mean prediction and mean expression", "95 %")
    header += (f"p, {run['config']['null']} null",)
    title = f"{name[0].upper()}{name[1:]} over the slides of the run"
    group = section(title, table(header, rows), *apart)
    means = he2rna.mean_of_genes(z["prediction"], z["truth"], chosen)
    return Asked(run, models, genes, label, name, o.cells, *means, z["project"], group)


def map_slide(asked, o, folder, slide, into, source):
    """Score a slide's tiles, compare them with the truth, write FOLDER/LABEL/ at once."""
    home, name = slide.home, slide.name
    features, coords = load_features(into, source, name)
    ground = map_ground(home, into, source, name, coords, o)
    use = held_out(asked.run, slide, o.all_models)
    models = [asked.models[f] for f in use]
    each = he2rna.score_tiles(models, features)  # (T, genes)
    scores = each.mean(1).astype(np.float64)
    columns = {"score": scores}
    if len(asked.genes) > 1:
        columns.update(zip(asked.genes, each.T))
    unit = f"score, log₁₀(1 + {unit_of_run(asked.run['config'])})"
    done = SlideMap(slide.label, f"{asked.name} on {slide.label}", *ground, scores, unit, columns)
    projects = {row["slide"]: row["project"] for row in asked.run["rows"]}
    project = projects[name] if slide.own else "new"
    done.about = {"project": project, "models": ", ".join(map(str, use))}
    done.span = span_in_run(asked, scores, project)
    done.without = why_no_tile(into, source, name)
    done.words = of_prediction(asked.run, home)
    done.lines = first_lines(asked, done, o.all_models)
    where = done.slide, done.mpp, done.coords, done.tile
    truth = truth_of(home, name, *where, asked.cells, o.regions)
    done.outlines, done.lacks = truth.outlines, truth.lacks
    done.outline = f"outline of {o.regions}" if o.regions else "outline in regions/"
    if truth.spots:
        add_spots(done, truth, asked, use, features)
    if truth.cells:
        add_cells(done, truth.cells, asked)
    if done.outlines:
        add_outline(done)
    done.lines += truth.lines() + asked.group
    add_provenance(done, asked, use, models, features, into)
    write_map(folder / slide.label, done, truth.origin)
    return done


def span_in_run(asked, scores, project):
    """The colours go over the slides of the run, of the same cancer where it has the slide's."""
    of = asked.projects == project
    which = f"slides of {project}" if of.any() else "slides"
    if not of.any():
        of[:] = True
    whose = f"the run's {of.sum():,} {which}"
    return span_of(scores, asked.predicted[of], asked.measured[of], whose)


def first_lines(asked, done, everyone):
    """The report's title, and who speaks of the slide."""
    who = "also those that learned" if everyone else "which did not learn"
    unit = unit_of_run(asked.run["config"])
    return [
        f"# {done.title}",
        "",
        *warning(done.words),
        f"{len(done.coords):,} tiles of {done.tile * done.mpp:.0f} µm; score: {asked.name} "
        f"in log10(1 + {unit}), of the models of fold {done.about['models']}, {who} from its "
        f"patient. Run {asked.run['folder']}. {done.span.said}",
        "",
        "![Map](map.png)",
        "",
        "![Highest and lowest tiles](gallery.png)",
        "",
    ]


def add_cells(done, cells, asked):
    """Compare the scores with the cells on each tile; those that the genes mark come first."""
    counts, figures = against_cells(done.scores, cells, done.coords, done.tile)
    rows = []
    for kind, n in counts.items():
        done.columns[f"cells: {kind}"] = n
        rows.append((kind, f"{n.sum():,}", *(f"{v:.3f}" for v in figures[kind])))
    marked = marked_class(asked.genes, cells)
    first = find_word(asked.cells, cells) if asked.cells else marked or EVERY
    done.cells = drawn_cells(cells, first)
    why, picture = "", []
    if first:
        done.counted, done.about["cells"] = first, first
        done.figures.update(zip(CELL_FIGURES, figures[first]))
        done.said += "; {}: R {:.3f} (p {:.3f})".format(first, *figures[first])
        rows.sort(key=lambda row: row[0] != first)
        picture = ["![Scores and cells](cells.png)"]
        if first == marked:
            why = f"First the cells that {few(asked.genes)} mark: {marked}. "
    figures = table(("cells", "on tiles", *CELL_FIGURES), rows)
    done.lines += section("Cells in each tile", why + space.P_MEANS, figures, *picture)


def add_spots(done, truth, asked, use, features):
    """Compare what was measured on spots with the scores of their tiles, the asked genes first."""
    places, measured = truth.spots
    on_tile = space.holder(places, done.coords, done.tile)  # (m,) -1: on none
    held = on_tile >= 0
    if held.sum() < 2:
        truth.lack(f"{held.sum()} of {len(held):,} spots lie on a tile: nothing to compare")
        return
    tiles = on_tile[held]
    run = asked.run
    own = [gene for gene in measured if gene in run["genes"]]
    pairs = {}
    if own:
        outputs = [run["genes"].index(gene) for gene in own]
        models = [model_of(run["folds"][f], "cpu", outputs) for f in use]
        each = he2rna.score_tiles(models, features[tiles])
        pairs = {g: (s, as_log(measured[g][held])) for g, s in zip(own, each.T)}
    for name in measured:
        pairs.setdefault(name, (done.scores[tiles], measured[name][held]))
    first, pairs, there = asked_first(asked.genes, pairs)
    done.spots = places[held], pairs
    rows = spot_rows([done.spots])
    found = f"{len(tiles)} of {len(held)} spots lie on a tile: {spot_summary(rows, own, first)}."
    done.lines += section("Spots", f"{found} Each column: spots.csv. {space.P_MEANS}")
    shown = [(name, f"{r:.4f}", f"{p:.4f}") for name, r, p in rows]
    done.tables["spots.csv"] = ("column", "R", "p"), shown
    if first:
        _, r, p = rows[0]
        done.figures.update({"R of spots": r, "p of spots": p})
        done.said += f"; spots: {first} R {r:.3f} (p {p:.3f}; {len(tiles)} of {len(held)} on tiles)"
    if there:
        values = np.mean([as_log(measured[gene]) for gene in there], 0)
        known = np.isfinite(values)
        low, high = values[known].min(), values[known].max()
        numbers = f"({low:.2f} to {high:.2f}), R {r:.2f} on {len(tiles)} of {len(held)}"
        name = f"spots: {first} as measured {numbers.replace('-', '−')}"
        done.dots = name, places[known], values[known]


def add_outline(done):
    """Compare the scores with what lies inside outlines."""
    inside = space.inside(done.coords + done.tile / 2, done.outlines)
    if inside.all() or not inside.any():
        done.lacks.append(f"{inside.sum():,} of {len(inside):,} tiles lie in the outlines: no AUC")
        return
    auc = stats.roc_auc(inside, done.scores)
    done.columns["inside"] = inside.astype(int)
    done.figures["outline AUC"] = auc
    done.said += f"; outline AUC {auc:.3f}"
    n = f"{inside.sum():,} of {len(inside):,} tiles have their centre inside"
    done.lines += section("Outline", f"{n}; AUC of the scores {auc:.3f}")


def add_provenance(done, asked, use, models, features, into):
    """How much each tile counts in the prediction of the first gene.

    It is the sum of weight x score over the (super-)tiles. [HE2RNA Methods, Model architecture]
    """
    gene, config = asked.genes[0], asked.run["config"]
    bag, row_of = bag_of(features, done.coords, config)
    tiles = np.bincount(row_of)
    x, y = (np.bincount(row_of, axis) / tiles for axis in done.coords.T)
    rows, sums = [], []
    weights = np.zeros(len(features))
    for fold, model in zip(use, models):
        scores = he2rna.score_tiles([model], bag)[:, 0].astype(np.float64)
        weight = he2rna.provenance(scores, model.ks)
        weights += (weight / tiles)[row_of] / len(models)
        sums.append(weight @ scores)
        for *place, n, w, score in zip(x, y, tiles, weight, scores):
            rows.append((fold, *(f"{at:.0f}" for at in place), n, f"{w:.9g}", f"{score:.9g}"))
    done.tables["provenance.csv"] = ("fold", "x", "y", "tiles", "weight", "score"), rows
    done.columns[f"weight: {gene}"] = weights
    done.said += f"; {gene} {np.mean(sums):.4f}"
    text = (
        f"{gene}: {np.mean(sums):.6f} in log10(1 + {unit_of_run(config)}), the sum of weight x "
        f"score over the {config['bags']} in provenance.csv, mean of the folds' "
        f"{few([f'{v:.6f}' for v in sums])}. tiles.csv has each tile's weight; a "
        "super-tile's is shared among its tiles."
    )
    if {"padding", "relu"} & set(config["code"]):
        text += " The run's own prediction differs: its padding or ReLU is the authors'."
    if into.name == "all-tiles":
        text += " This is of every tissue tile; predict uses the sample that training used."
    done.lines += section("Where the prediction comes from", text)


def write_summary(path, asked, maps):
    """summary.md: the figures of each slide, and the spots of slides with the same models."""
    said = f"Run {asked.run['folder']}. Each slide has its own folder and report beside this file."
    figures = table_of_maps(maps)
    lines = [f"# {asked.name}: {len(maps)} slides", "", *warning(maps[0].words)]
    lines += [said, "", *asked.group, *section("Each slide", figures)]
    together = {}
    for done in maps:
        if done.spots:
            together.setdefault(done.about["models"], []).append(done.spots)
    rows = []
    for models, spots in sorted(together.items()):
        n = sum(len(places) for places, _ in spots)
        first, *_ = asked_first(asked.genes, spots[0][1])
        found = spot_summary(spot_rows(spots), asked.run["genes"], first)
        rows.append((models, len(spots), n, found))
    if rows:
        about = f"Spots of all slides that the same models speak of. {space.P_MEANS}"
        spots = table(("models", "slides", "spots", "found"), rows)
        lines += section("Spots", about, spots)
        print(spots)
    save_text(path, lines)
    print(f"{figures}\nreport: {path}")
