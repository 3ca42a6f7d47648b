"""lab.commands.histcode.probe"""

from pathlib import Path

import numpy as np

import tiling
from lab.cohort.samples import read_samples
from lab.cohort.slides import open_slide
from lab.commands.histcode.pretrain import TILE_PX
from lab.commands.options import add_options
from lab.devices import pick_device
from lab.encoders import load_encoder, prepare_encoder, read_encoder
from lab.exchange.qupath import qupath_frame
from lab.fast.encoder import encode
from lab.files import InputError, few, load_json, save_csv
from lab.histcode.options import check_ranges
from lab.histcode.probe import cell_content, linear_probe, untrained
from lab.histcode.tiles import EDGES, TILES_PER_SLIDE, find_data
from lab.progress import counted, ordered_map, progress


def run(o):
    """R2 of the cells in a tile from the frozen features of each encoder; random: where a run with --weights random starts.
    Ridge regression, patients (or --hold-out slides) whole, the penalty chosen inside the training part."""
    cohort, device = Path(o.cohort), pick_device(o.device)
    check_ranges(o, ("tiles_per_slide", 1, 1e9), ("tile_px", *EDGES))
    if o.csv and Path(o.csv).is_dir():
        raise InputError(f"--csv {o.csv}: a folder; wanted is the name of a file")
    gone = [name for name in o.files if name != "random" and not Path(name).is_file()]
    if gone:
        raise InputError(
            f"{few(gone)}: no such file; it takes the encoder files of pretrain, or the word random"
        )
    kinds = {
        tuple(read_encoder(name)[k] for k in ("tile_px", "tile_um", "colour"))
        for name in o.files
        if name != "random"
    }
    if len(kinds) > 1:
        sizes = ", ".join(
            f"{px} px = {um:g} µm, colour {colour}" for px, um, colour in sorted(kinds)
        )
        raise InputError(f"encoders of different tiles ({sizes}): probe them one by one")
    px, um, colour = kinds.pop() if kinds else (None, None, None)
    there = o.tile_um or (load_json(cohort / "tiles" / "settings.json") or {}).get("tile_um", um)
    if um not in (None, there):
        raise InputError(
            f"the encoders learned from tiles of {um:g} µm, "
            + ("--tile-um is" if o.tile_um else f"those of {cohort}/tiles are of")
            + f" {there:g}: --tile-um {um:g} cuts them anew"
        )
    if colour and o.colour not in (None, colour):
        raise InputError(
            f"--colour {o.colour}: the encoders learned from --colour {colour}; leave --colour out"
        )
    o.tile_px = px = o.tile_px or px or TILE_PX
    o.tile_um, o.colour = o.tile_um or um, colour or o.colour
    rows = read_samples(cohort)
    patients = {r["slide"]: r["patient"] for r in rows}
    data, failed = find_data(cohort, list(patients), o)
    known, groups, picked = [], [], []
    for s, name in enumerate(counted("cells", data["slides"], "slides")):
        coords, tile = data["coords"][s], data["tiles"][s]
        frame = qupath_frame(open_slide(data["paths"][s]), data["mpp"][s])
        content = cell_content(cohort, name, coords, tile, *frame)
        usable = (
            np.arange(len(coords)) if content == {} else []
        )  # a list of no points: no cells anywhere
        if content:
            usable = np.flatnonzero(np.isfinite(list(content.values())).all(0))
        keep = np.sort(
            np.random.default_rng([o.seed, s]).permutation(usable)[: o.tiles_per_slide]
        ).astype(int)
        if len(keep):
            known.append((len(keep), {c: v[keep] for c, v in content.items()}))
            groups += [name if o.hold_out == "slide" else patients[name]] * len(keep)
            picked.append((s, keep))
    classes = sorted({c for _, content in known for c in content})
    if not classes or len(set(groups)) < 3:
        raise InputError(
            f"{cohort}: points/<slide>.csv or spots/<slide>.csv with fraction:... columns are there for "
            f"{len(set(groups))} {o.hold_out}s; a probe needs 3"
        )
    y = np.concatenate([np.stack([c.get(k, np.zeros(n)) for k in classes], 1) for n, c in known])
    print(
        f"{len(y):,} tiles ({o.tile_um:g} µm, {o.tile_px} px) of {len(set(groups))} {o.hold_out}s; R2 on held-out {o.hold_out}s"
    )
    width = max(len(name) for name in [*o.files, "encoder"])
    print(
        f"{'encoder':{width}s}  {'mean':>8s}" + "".join(f"  {c[:12]:>12s}" for c in classes),
        flush=True,
    )
    results = []
    for name in o.files:
        net = (
            untrained(data, o, device)
            if name == "random"
            else load_encoder(name, None, o.seed, device).to(device)
        )
        net = prepare_encoder(net, device, "float32")
        tick = progress(f"features of {Path(name).parent.name or name}", len(y), "tiles")

        def read(job):
            s, keep = job
            slide, coords = open_slide(data["paths"][s]), data["coords"][s][keep]
            return [
                tiling.macenko(
                    tiling.read_tiles(slide, coords[a:b], data["tiles"][s], px), data["stains"][s]
                )[0]
                for a, b in tiling.tile_runs(coords, data["tiles"][s])
            ]

        def chunks():
            for (s, keep), tiles in ordered_map(read, picked, o.workers):
                if isinstance(tiles, Exception):
                    raise InputError(f"{data['paths'][s]} can't be read to its end ({tiles})")
                tick(len(keep))
                yield from tiles

        r2 = linear_probe(encode(net, chunks()), y, groups, seed=o.seed)
        results.append((name, r2))
        print(
            f"{name:{width}s}  {np.nanmean(r2):8.3f}" + "".join(f"  {v:12.3f}" for v in r2),
            flush=True,
        )
    if o.csv:
        save_csv(
            o.csv,
            ("encoder", "tiles", f"{o.hold_out}s", "mean", *classes),
            [(name, len(y), len(set(groups)), np.nanmean(r2), *r2) for name, r2 in results],
        )
    return 1 if failed else 0


def options(parser):
    parser.set_defaults(within="")
    parser.add_argument("cohort", help="a cohort folder: slides/ and samples.csv")
    p, a = parser, parser.add_argument
    a(
        "files",
        nargs="+",
        metavar="ENCODER",
        help="encoder files of pretrain, runs/NAME/NAME.pt, or the word random",
    )
    a(
        "--tiles-per-slide",
        type=int,
        default=TILES_PER_SLIDE,
        help=f"random tiles of each slide, at most (default {TILES_PER_SLIDE})",
    )
    a(
        "--tile-px",
        type=int,
        help="edge of a tile as the encoders see it, px (default: as they were trained)",
    )
    a(
        "--hold-out",
        choices=("patient", "slide"),
        default="patient",
        help="what is never divided between fit and test: "
        "patients (default); slides, where patients are few: asks whether features hold the cells, not whether they carry "
        "over to other patients' stains",
    )
    a("--csv", metavar="FILE", help="write the table there too")
    add_options(p, encoder=None)
