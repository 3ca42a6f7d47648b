"""Where the models of a run look: attention laid back on the slide, or what its tiles add.

    python histcode.py heatmap RUN SLIDE...                      attention [HistCode Fig. 10]
    python histcode.py heatmap RUN SLIDE... --genes CD3D,CD19    of fold changes [HistCode Fig. 11]

Compared with cells in points/ and outlines in regions/, where the cohort has them. Writes
RUN/heatmaps/LABEL/SLIDE/: map and gallery as .png and .svg, tiles.csv, tiles.geojson, report.md;
summary.md of several slides beside.
"""

from dataclasses import dataclass

import numpy as np
from openslide import OpenSlideError

import histcode
import stats
import tiling
from lab import space
from lab.application import each_slide, every_tile, held_out, pick_genes
from lab.cohort.features import load_features
from lab.cohort.markers import marked_class
from lab.cohort.slides import can_be_named
from lab.cohort.truth import truth_of
from lab.commands.histcode.options import slides_of_run
from lab.devices import pick_device
from lab.files import InputError, save_text
from lab.histcode.heads import apply_heads
from lab.histcode.predictions import SUMS, contributions
from lab.histcode.runs import load_run, off_scale
from lab.progress import report_failures, table
from lab.provenance import of_prediction, warning
from lab.show.maps import SIGNED_COLORS, Span, map_ground, middle_of, why_no_tile
from lab.show.plots import need_matplotlib
from lab.show.slide_map import SlideMap, drawn_cells, lacks_of, table_of_maps, write_map
from lab.words import find_word

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
        if not can_be_named(gene + end):
            raise InputError(
                f"--genes: gene {gene!r} can't name a map's folder; rename it in the expression "
                "table"
            )
        every.append(Asked(run, appliers, j, score, gene + end))
    return every


def map_scores(asked, use, h):
    """Scores (T,), mean of the chosen models: attention from 0 to 1, or contributions; and their
    mean attention (T,) as it is, times the number of tiles.

    nan where no model has a score. A tile at neither end adds 0 to a model's output, so that the
    sum and the mean bias are the mean prediction.
    """
    each, shares = [], []
    for m in use:
        a = asked.appliers[m](h)[1].double().numpy()  # (M, T)
        own = a[asked.output if len(a) > 1 else 0]
        scores = histcode.scale_to_one(own)
        if asked.score == "contribution":
            scores = contributions(asked.run["folds"][m], h, a, asked.output)
        if not np.isfinite(a).all() or np.isinf(scores).any():
            raise InputError(off_scale(h))
        each.append(scores)
        shares.append(own * len(h))
    mean = np.nan_to_num(each).mean(0)
    return np.where(np.isnan(each).all(0), np.nan, mean), np.mean(shares, 0)


def span_of_map(score, scores, shares):
    """The Span of the colours: of attention from 0 to 1, of contributions as far below as above 0.

    Attention is scaled to 0 and 1 whatever it is: beside it stands how uneven it was before.
    """
    if score == "attention":
        said = (
            "Colours go from 0, each model's lowest tile, to 1, its highest. Before this scaling "
            f"tiles weigh {shares.min():.2g} to {shares.max():.2g} times an even share."
        )
        return Span(0, 1, said)
    most = np.abs(middle_of(scores[~np.isnan(scores)])).max()
    end = f"{most:.2g}"
    said = f"Colours go from −{end} to {end}, white in their middle: what adds nothing."
    return Span(-most, most, said, SIGNED_COLORS)


def gene_of(asked):
    return asked.run["folds"][0]["genes"][asked.output]


def what_is_drawn(asked):
    """(What the models tell, in words; the tiles' scores and their unit)."""
    if asked.run["config"]["command"] == "diagnose":
        negative, positive = asked.run["config"]["classes"]
        told, unit = f"{positive} against {negative}", f"log odds of {positive}"
    else:
        told = unit = f"log₂ fold change of {gene_of(asked)}"
    if asked.score == "attention":
        return told, "attention"
    return told, f"contribution to the {unit}"


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
    use = held_out(run, slide, o.all_models)
    return h, ground, truth, use, why_no_tile(into, source, slide.name)


def map_slide(asked, o, slide, h, ground, truth, use, without):
    """Score a slide's tiles, compare them with the truth, write its folder at once."""
    scores, shares = map_scores(asked, use, h)
    told, unit = what_is_drawn(asked)
    title = f"{told}: {asked.score} on {slide.label}"
    done = SlideMap(slide.label, title, *ground, scores, unit, {asked.score: scores})
    done.span = span_of_map(asked.score, scores, shares)
    done.without, done.words = without, of_prediction(asked.run, slide.home)
    done.lines = first_lines(asked, done, use, o.all_models)
    done.outlines, done.lacks = truth.outlines, truth.lacks
    done.outline = f"outline of {o.regions}" if o.regions else "outline in regions/"
    if truth.outlines:
        add_outline(done, o.regions)
    if truth.cells:
        add_cells(done, truth.cells, asked)
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
        *warning(done.words),
        f"{n:,} tiles of {done.tile * done.mpp:.0f} µm; {MEANING[asked.score]}{less}; mean of "
        f"{len(use)} of {len(asked.appliers)} models, {who}. Run {asked.run['folder']}. "
        f"{done.span.said}",
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


def add_cells(done, cells, asked):
    """Compare the scores with the cells on each tile.

    First come those that the asked gene marks, or those of the diagnosed class.
    """
    if asked.run["config"]["command"] == "expression":
        first = marked_class([gene_of(asked)], cells)
    else:
        first = find_word(asked.run["config"]["classes"][1], cells)
    done.counted = first or ""
    done.cells = drawn_cells(cells, done.counted)
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
    rows.sort(key=lambda row: row[0] != done.counted)
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
    title = f"# {label}: {len(maps)} slides"
    save_text(path, [title, "", *warning(maps[0].words), figures, ""])
    print(f"{figures}\nreport: {path}")
