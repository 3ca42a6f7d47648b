"""lab.commands.he2rna.heatmap"""

import gzip
import re
from pathlib import Path

import numpy as np

import he2rna
import stats
import tiling
from lab.application import each_slide, every_tile, held_out, pick_genes
from lab.cohort.features import load_features
from lab.cohort.places import read_outlines, read_places
from lab.commands.options import add_options, report_failures
from lab.encoders import pick_device
from lab.exchange.qupath import qupath_frame, tiles_geojson
from lab.files import InputError, digest, few, save_csv, save_json, save_text
from lab.he2rna.evaluation import code_of
from lab.he2rna.runs import bag_of, load_run, model_of, slides_of_run
from lab.he2rna.spatial import (
    SHIFTS,
    against_cells,
    as_log,
    group_r,
    score_tiles,
    spot_summary,
    spot_table,
)
from lab.progress import table
from lab.show.gallery import draw_gallery
from lab.show.maps import draw_heatmap, map_ground, whole_folder
from lab.show.plots import draw_scatter, need_matplotlib


def account_of(models, folds, features, coords, j, config):
    """The account of a slide's prediction of gene j: rows (fold, x, y, tiles, weight, score), weight of each tile, a sum a
    model."""
    bag, row = bag_of(features, coords, config)
    size = np.bincount(row)  # tiles of each super-tile
    at = np.stack([np.bincount(row, axis) / size for axis in coords.T], 1)  # (T, 2) mean top-left
    rows, weights, sums = [], np.zeros(len(features)), []
    for f, model in zip(folds, models):
        s = score_tiles([model], bag)[:, j].astype(np.float64)
        w = he2rna.provenance(s, model.ks)
        weights += (w / size)[row] / len(models)
        sums.append(w @ s)
        rows += [
            (f, f"{x:.0f}", f"{y:.0f}", n, f"{a:.9g}", f"{b:.9g}")
            for (x, y), n, a, b in zip(at, size, w, s)
        ]
    return rows, weights, sums


def cells_on_map(o, folder, cells, scores, coords, tile):
    """A slide's scores against its cells -> (rows and counts of against_cells, lines of the report)."""
    if o.cells not in cells:  # none on this slide, or nowhere?
        raw = (p.read_bytes() for p in folder.iterdir())
        field = re.compile(rb'[,\t"]' + re.escape(o.cells.encode()) + rb'[,\t"\r\n]')
        if not any(field.search(gzip.decompress(b) if b[:2] == b"\x1f\x8b" else b) for b in raw):
            raise InputError(
                f"--cells {o.cells}: no such class in {folder}; this slide has {few(list(cells))}"
            )
        cells[o.cells] = np.zeros((0, 2))
    rows, counts = against_cells(scores, cells, coords, tile)
    return (
        rows,
        counts,
        [
            "## Cells in each tile",
            "",
            f"p: a spatial shift of the scores ({SHIFTS} of them) gives an R as high.",
            "",
            table(
                ("cells", "on tiles", "R", "p", "Spearman", "median in the best tiles", "in all"),
                [
                    (
                        c,
                        f"{n:,}",
                        f"{r:.3f}",
                        f"{p:.3f}",
                        f"{rho:.3f}",
                        f"{top:g} ({m} tiles)",
                        f"{of_all:g}",
                    )
                    for c, n, r, p, rho, m, top, of_all in rows
                ],
            ),
            "",
            "![Scores and cells](cells.png)",
            "",
        ],
    )


def spots_on_map(run, use, device, spots, features, scores, coords, tile):
    """Spots that lie on a slide's tiles -> (what spot_table takes of the slide, or None; its rows; lines of the report)."""
    (places, measured), at = spots, {g: j for j, g in enumerate(run["genes"])}
    which = stats.holder(places, coords, tile)  # (m,) -1: on no tile
    held, own = which >= 0, [c for c in measured if c in at]
    if held.sum() < 2:
        return None, [], []
    models = (
        [model_of(run["folds"][f], device, [at[c] for c in own]).eval() for f in use] if own else []
    )
    s = score_tiles(models, features[which[held]]) if own else None
    spots = (
        places[held],
        scores[which[held]],
        {c: (s[:, j], as_log(measured[c][held])) for j, c in enumerate(own)},
        {c: v[held] for c, v in measured.items() if c not in at},
    )
    rows = spot_table([spots])
    line = f"{held.sum()} of {len(held)} spots lie on a tile: {spot_summary(rows)}. Each column: spots.csv"
    return spots, rows, ["## Spots", "", line, ""]


def map_slide(run, o, models, home, into, source, name, label, chosen, group):
    """Everything of one slide's map, written into RUN/heatmaps/LABEL/SLIDE/ at once. -> dict for the summary."""
    bags, (features, coords) = run["config"]["bags"], load_features(into, source, name)
    slide, (W, H), mpp, tile = map_ground(home, into, source, name, coords, o)
    use = held_out(run, name, home, o.all_models)
    used, genes = [models[f] for f in use], [run["genes"][j] for j in chosen]
    each = score_tiles(used, features)  # (n, genes)
    scores = each.mean(1).astype(np.float64)  # (n,)
    truth_in = (
        home if any((home / d).is_dir() for d in ("points", "spots", "regions")) else run["cohort"]
    )
    um, origin = qupath_frame(slide, mpp)
    cells, spots = read_places(truth_in, name, um, origin)
    outlines = read_outlines(truth_in, name, origin, o.regions)
    columns = {
        "score": scores,
        **({g: each[:, j] for j, g in enumerate(genes)} if len(genes) > 1 else {}),
    }
    result = dict(
        name=name,
        use=use,
        tiles=len(coords),
        project={r["slide"]: r["project"] for r in run["rows"]}.get(name, "new"),
    )
    text = [
        f"# {label} on {name}",
        "",
        f"{len(coords):,} tiles of {tile * mpp:.0f} µm; score: mean of {few(genes)} in "
        f"log10(1 + FPKM-UQ), of the models of fold{'s' * (len(use) > 1)} {', '.join(map(str, use))}"
        + (
            ", which did not learn from its patient"
            if len(use) < len(models)
            else ", also those that learned from its patient"
            if o.all_models
            else ", none of which knows the slide"
        )
        + f". Run {run['folder']}.",
        "",
        "![Map](map.png)",
        "",
        "![Highest and lowest tiles](gallery.png)",
        "",
    ]
    if cells:
        result["cells"], counts, lines = cells_on_map(
            o, truth_in / "points", cells, scores, coords, tile
        )
        columns.update({f"cells: {c}": n for c, n in counts.items()})
        text += lines
    if spots:
        device = next(used[0].parameters()).device
        on_tiles, spot_rows, lines = spots_on_map(
            run, use, device, spots, features, scores, coords, tile
        )
        result |= dict(spots=on_tiles) if on_tiles else {}
        text += lines
    if outlines:
        inside = stats.inside(coords + tile / 2, outlines)
        columns["inside"], result["auc"] = inside.astype(int), stats.roc_auc(inside, scores)
        text += [
            "## Outline" + f" of {o.regions}" * bool(o.regions),
            "",
            f"{inside.sum():,} of {len(inside):,} tiles have "
            f"their centre inside; AUC of the scores {result['auc']:.3f}",
            "",
        ]
    gene = o.provenance or genes[0]
    account, weights, sums = account_of(
        used, use, features, coords, genes.index(gene), run["config"]
    )
    columns[f"weight: {gene}"], result["prediction"] = weights, float(np.mean(sums))
    text += [
        *group,
        "## Where the prediction comes from",
        "",
        f"{gene}: {np.mean(sums):.6f} in log10(1 + FPKM-UQ), the sum "
        f"of weight x score over the {bags} in provenance.csv"
        + (f", mean of the folds' {few([f'{v:.6f}' for v in sums])}" if len(sums) > 1 else "")
        + (
            ". The run's own prediction differs from this sum: its padding or ReLU is the authors'"
            if {"padding", "relu"} & set(code_of(run["folder"]))
            else ""
        )
        + ". tiles.csv has each tile's weight"
        + " (its super-tile's, shared among its tiles)" * (bags == "super-tiles")
        + ". This is of every tissue tile; predict uses the sample that training used"
        * (into.name == "all-tiles")
        + ".",
        "",
    ]
    folder = run["folder"] / "heatmaps" / label / name
    with whole_folder(folder) as work:
        rgb, _ = tiling.thumbnail(slide, mpp, max(W, H) * mpp / 1500)
        counted, title = counts[o.cells] if cells else None, f"{label} on {name}"
        draw_heatmap(
            work / "map.png",
            rgb,
            (W, H),
            mpp,
            coords,
            tile,
            scores,
            title,
            "score, log$_{10}$(1 + FPKM-UQ)",
            cells[o.cells] if cells else None,
            outlines,
        )
        draw_gallery(
            work / "gallery.png",
            slide,
            coords,
            tile,
            scores,
            f"{title}: highest and lowest tiles",
            counted,
            o.cells,
        )
        if cells:
            draw_scatter(
                work / "cells.png", scores, counted, "score", f"{o.cells} in a tile", title
            )
        save_csv(
            work / "tiles.csv",
            ("x", "y", *columns),
            ((*xy, *(f"{v:.6g}" for v in row)) for xy, row in zip(coords, zip(*columns.values()))),
        )
        save_csv(work / "provenance.csv", ("fold", "x", "y", "tiles", "weight", "score"), account)
        if "spots" in result:
            save_csv(
                work / "spots.csv",
                ("column", "R", "p"),
                ((c, f"{r:.4f}", f"{p:.4f}") for _, c, r, p in spot_rows),
            )
        measured = np.stack(list(columns.values()), 1)
        save_json(
            work / "tiles.geojson", tiles_geojson(coords - origin, tile, measured, list(columns))
        )
        save_text(work / "report.md", text)
    return result


def run(o):
    """Where on its slide a gene, or the mean of several, is predicted to be expressed; and whether the truth agrees."""
    need_matplotlib()
    run, device, results, failed = load_run(o.run), pick_device(o.device), [], {}
    chosen = pick_genes(o.genes, run["genes"])
    genes = [run["genes"][j] for j in chosen]
    label = o.name or (
        "-".join(genes)
        if len(genes) < 5
        else f"{genes[0]}-and-{len(genes) - 1}-more-{digest(genes)[:6]}"
    )
    if Path(label).name != label or label in (".", ".."):
        raise InputError(f"--name {label}: the name of a folder, not a path")
    if o.provenance and o.provenance not in genes:
        raise InputError(f"--provenance {o.provenance}: not one of --genes {few(genes)}")
    models = [model_of(saved, device, chosen).eval() for saved in run["folds"]]
    rows = group_r(run, chosen)
    group = [
        f"## {'Mean of the genes' if len(genes) > 1 else genes[0]} over the slides of the run",
        "",
        table(("cancer", "slides", "R of mean prediction and mean expression", "95 %", "p"), rows),
        "",
    ]
    print(
        "over the slides of the run: "
        + ", ".join(f"{name} R {r} ({ci}; n {n})" for name, n, r, ci, _ in rows)
    )
    for options, home, into, source, name in each_slide(run, o, failed):
        try:
            place = every_tile(run, options, home, into, source, name)
            results.append(
                map_slide(run, options, models, home, place, source, name, label, chosen, group)
            )
        except (InputError, OSError) as e:
            failed[name] = str(e)
            continue
        found = {
            kind: f"R {r:.3f} (p {p:.3f})" for kind, _, r, p, *_ in results[-1].get("cells", ())
        }
        print(
            f"{name}: {results[-1]['tiles']:,} tiles, models of folds {', '.join(map(str, results[-1]['use']))}; "
            f"{o.provenance or genes[0]} {results[-1]['prediction']:.4f}"
            + (f"; {o.cells}: {found[o.cells]}" if found else "")
            + (f"; outline AUC {results[-1]['auc']:.3f}" if "auc" in results[-1] else "")
            + f" -> {run['folder'] / 'heatmaps' / label / name}",
            flush=True,
        )
    if len(results) > 1:
        write_summary(run, o, label, results, group)
    return report_failures(failed, len(results) + len(failed), run["folder"] / "heatmaps" / label)


def write_summary(run, o, label, results, group):
    """summary.md of several slides: cells slide by slide, spots of the slides of each fold together."""
    path = run["folder"] / "heatmaps" / label / "summary.md"
    text = [
        f"# {label}: {len(results)} slides",
        "",
        f"Run {run['folder']}. Each slide has its own folder and report beside this file.",
        "",
        *group,
    ]
    cells = [
        (e["name"], e["project"], ", ".join(map(str, e["use"])), *row)
        for e in results
        for row in e.get("cells", ())
    ]
    for kind in dict.fromkeys(row[3] for row in cells):
        rows = [row for row in cells if row[3] == kind]
        r = np.array([row[5] for row in rows])
        line = (
            f"{kind}: R per tile, mean over {(~np.isnan(r)).sum()} slides {np.nanmean(r):.3f}, median "
            f"{np.nanmedian(r):.3f}; p < {he2rna.ALPHA} in {sum(row[6] < he2rna.ALPHA for row in rows)} of them"
        )
        text += [f"## {kind}", "", line, ""]
        if kind == o.cells:
            print(line)
            text += [
                table(
                    (
                        "slide",
                        "project",
                        "models",
                        "cells",
                        "R",
                        "p",
                        "Spearman",
                        "median in the best",
                        "in all",
                    ),
                    [
                        (
                            a,
                            b,
                            c,
                            f"{n:,}",
                            f"{r:.3f}",
                            f"{p:.3f}",
                            f"{rho:.3f}",
                            f"{top:g}",
                            f"{of_all:g}",
                        )
                        for a, b, c, _, n, r, p, rho, m, top, of_all in rows
                    ],
                ),
                "",
            ]
    with_spots, rows = [e for e in results if "spots" in e], []
    for use in sorted({tuple(e["use"]) for e in with_spots}):
        part = [e["spots"] for e in with_spots if tuple(e["use"]) == use]
        line = spot_summary(spot_table(part, o.seed))
        rows.append((", ".join(map(str, use)), len(part), sum(len(s[0]) for s in part), line))
        print(
            f"spots of {len(part)} slides, models of folds {rows[-1][0]}: {rows[-1][2]} spots; {line}"
        )
    if rows:
        text += [
            "## Spots",
            "",
            "R over the spots of all slides that the same models speak of; p against scores shifted "
            "within each slide.",
            "",
            table(("models", "slides", "spots", "found"), rows),
            "",
        ]
    save_text(path, text)
    print(f"report: {path}")


def options(parser):
    slides_of_run(parser)
    a = parser.add_argument
    a("--genes", required=True, metavar="A,B|FILE", help="one gene, or several whose mean is drawn")
    a("--name", help="of the folder in RUN/heatmaps/ (default: the genes)")
    a(
        "--cells",
        default="all cells",
        metavar="CLASS",
        help="class of points/ to draw and to count in the best "
        "tiles (default: all cells; the report has a row for each)",
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
