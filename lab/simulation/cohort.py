"""A simulated cohort: slides drawn from known cells, expression made from the same cells."""

import json
from pathlib import Path

import numpy as np

from lab.files import InputError, read_rows, save_csv, save_file, save_text
from lab.progress import ordered_map, progress
from lab.provenance import SIMULATED
from lab.simulation.drawing import (
    COARSE,
    NUCLEI,
    OUTLINE_STEP,
    SIM_MPP,
    draw_slide,
    trace,
    write_slide,
)
from lab.simulation.genes import DENSITY_FLOOR, simulate_expression
from lab.threads import cores

MSI_HIGH, MSI_LOW = 0.2, 0.1  # shares of the patients  [ours]
SAMPLES_COLUMNS = ("slide", "patient", "project", "sample", "sample_type", "tumor", "msi")
README = (
    f"# A {SIMULATED}: drawn, no patients"
    + """

Redraw it: `python tiling.py simulate FOLDER --patients {patients} --seed {seed}{more}`

Planted: four kinds of cells whose densities differ between slides and within them; a stain per
slide, a scanner (mpp) per project; genes that follow the cells of their own slides; MSI-H tumours
with more lymphocytes, mucin and 20 genes of their own; normal slides without tumour, each paired
with a tumour.

- samples.csv: slide, patient, project, sample, sample_type, tumor 1/0, msi of the patient.
  It is written last.
- points/: every nucleus drawn: x, y of its centre in level-0 pixels, cell.
- regions/: outlines of the tumours with the stroma between their nests, to {step} px; none for a
  normal slide.
- expression.csv: a row per sample, linear: log10(1+a) = base + effect * content + noise. content:
  log10(cells per mm2 + {floor:g}) of the programme's cell (or MSI-H tumour, 0/1), mean of the
  sample's slides, standardised over samples.
- truth/slides.csv: cells, area inside the tissue outline (mm2), cells per mm2 of it, stain
  amounts, eosin mix, white.
- truth/genes.csv: programme, effect and noise (log10), base, true_r (expected R with content; 0
  where none is followed).
"""
)


def simulate_cohort(folder, patients=64, seed=0, edge_px=1800, normal_in=4, workers=None):
    """Write a SIMULATED cohort with known truth (see its README.md) into `folder`.

    The files are the same for any number of workers. A cohort that is complete with the same
    settings is left as it is, one that was interrupted is drawn again. InputError for a folder that
    holds anything else.
    """
    if patients < 4 or edge_px < 400 or seed < 0 or normal_in < 1:
        raise InputError(
            f"patients {patients}, edge_px {edge_px}, seed {seed}, normal_in {normal_in}: at least "
            "4 patients, 400 px, seed 0 and 1 are wanted"
        )
    folder = Path(folder)
    if not claim(folder, readme_text(patients, seed, edge_px, normal_in)):
        return
    slides = plan_cohort(patients, seed, normal_in)

    def draw(index):
        return draw_files(folder, seed, index + 1, slides[index], edge_px)

    truth = []
    tick = progress("SIMULATED slides", len(slides), "slides")
    for _, row in ordered_map(draw, range(len(slides)), workers or cores()):
        if isinstance(row, Exception):
            raise row
        truth.append(row)
        tick()
    expression, genes = simulate_expression(truth, seed)
    save_rows(folder / "expression.csv", expression)
    save_rows(folder / "truth" / "slides.csv", truth)
    save_rows(folder / "truth" / "genes.csv", genes)
    samples = [{column: slide[column] for column in SAMPLES_COLUMNS} for slide in slides]
    save_rows(folder / "samples.csv", samples)  # last: it says that all is there


def readme_text(patients, seed, edge_px, normal_in):
    more = ""
    if normal_in != 4:
        more += f" --normal-in {normal_in}"
    if edge_px != 1800:
        more += f" ({edge_px} px)"
    step = COARSE * OUTLINE_STEP
    return README.format(patients=patients, seed=seed, more=more, floor=DENSITY_FLOOR, step=step)


def claim(folder, text):
    """Write the cohort's README.md; False where the cohort is complete already."""
    readme = folder / "README.md"
    there = readme.read_text(errors="replace") if readme.is_file() else ""
    if folder.exists() and any(folder.iterdir()) and there != text:
        what = "not empty and not a simulated cohort"
        if "SIMULATED" in there:
            what = "a simulated cohort of other settings"
        raise InputError(f"{folder} is {what}: give a new folder, or delete it")
    if (folder / "samples.csv").exists():
        return False
    save_file(readme, lambda f: f.write(text.encode()))
    return True


def save_rows(path, rows):
    """Dicts of the same keys as a csv, numbers with six digits."""
    lines = []
    for row in rows:
        lines.append([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()])
    save_csv(path, tuple(rows[0]), lines)


def plan_cohort(patients, seed, normal_in=4):
    """What samples.csv says of each slide and how its tissue is to look: a list of dicts of traits.

    Per project a fifth of the patients is MSI-H and a tenth MSI-L, a sixth has a second tumour
    slide and one in normal_in a normal one. Lymphocytes span a factor above 10 between patients.
    """
    rng = np.random.default_rng([seed, 0])
    slides = []
    for number, project in enumerate(SIM_MPP):
        count = (patients + 1 - number) // 2
        high = max(1, round(MSI_HIGH * count))
        low = round(MSI_LOW * count)
        labels = ["MSI-H"] * high + ["MSI-L"] * low + ["MSS"] * (count - high - low)
        for i, msi in enumerate(rng.permutation(labels)):
            patient = f"S{2 * i + number + 1:03d}"
            traits = draw_patient(rng, project)
            wanted = [(1, "DX1")]
            if i % 6 == 0:
                wanted.append((1, "DX2"))
            if i % normal_in == (normal_in > 1):
                wanted.append((0, "DX1"))
            for tumor, name in wanted:
                sample = f"{patient}-{'01A' if tumor else '11A'}"
                row = {
                    "slide": f"{sample}-{name}",
                    "patient": patient,
                    "project": project,
                    "sample": sample,
                    "sample_type": "Primary Tumor" if tumor else "Solid Tissue Normal",
                    "tumor": tumor,
                    "msi": str(msi),
                }
                slides.append(row | slide_traits(rng, traits, tumor, msi))
    return slides


def draw_patient(rng, project):
    """Traits that a patient's slides share: shares of the tissue, µm, lymphocytes per mm²."""
    share = rng.uniform(0.2, 0.75)
    spacing = rng.uniform(10.5, 15)
    lymphocytes = 10 ** rng.uniform(2.1, 3.2)
    glands = rng.uniform(0, 0.4)
    fat = rng.uniform(0.02, 0.15) if project == "SIM-COLO" else rng.uniform(0.1, 0.45)
    return {
        "tumour": share,
        "spacing": spacing,
        "fat": fat,
        "glands": glands,
        "lymphocytes": lymphocytes,
    }


def slide_traits(rng, patient, tumor, msi):
    """The traits of one slide: its patient's, varied; a normal slide has no tumour but glands."""
    share = patient["tumour"] * rng.uniform(0.85, 1.15) * tumor
    glands = patient["glands"] if tumor else rng.uniform(0.6, 0.9)
    lymphocytes = patient["lymphocytes"] * 10 ** rng.normal(0, 0.06)
    if not tumor:
        lymphocytes *= 0.4
    elif msi == "MSI-H":
        lymphocytes *= 2.2
    return patient | {"tumour": share, "glands": glands, "lymphocytes": lymphocytes}


def draw_files(folder, seed, index, traits, edge_px):
    """Draw a slide, write its files, and return its row of truth/slides.csv."""
    rgb, points, area, stain, tumour = draw_slide(seed, index, traits, edge_px)
    name = traits["slide"]
    write_slide(folder / "slides" / f"{name}.tif", rgb, SIM_MPP[traits["project"]])
    save_csv(folder / "points" / f"{name}.csv", ("x", "y", "cell"), points)
    start, step = OUTLINE_STEP // 2, OUTLINE_STEP
    polygons = trace(tumour[start::step, start::step])
    if polygons:
        text = json.dumps(tumour_geojson(polygons))
        save_text(folder / "regions" / f"{name}.geojson", [text])
    row = {key: traits[key] for key in ("slide", "sample", "tumor", "msi")}
    counts = {cell: sum(point[2] == cell for point in points) for cell in NUCLEI}
    per_mm2 = {f"{cell}_per_mm2": counts[cell] / area for cell in NUCLEI}
    return row | counts | {"tissue_mm2": area} | per_mm2 | stain


def tumour_geojson(polygons):
    """Outlines in pixels of the coarse map -> GeoJSON in level-0 pixels, as QuPath writes it."""
    features = []
    for rings in polygons:
        places = [(ring * OUTLINE_STEP * COARSE).tolist() for ring in rings]
        features.append(
            {
                "type": "Feature",
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": "Tumor"},
                },
                "geometry": {"type": "Polygon", "coordinates": places},
            }
        )
    return {"type": "FeatureCollection", "features": features}


def planted_programmes(cohort, genes):
    """{programme: (G,) which genes are of it} of a simulated cohort; None of another."""
    path = Path(cohort) / "truth" / "genes.csv"
    if not path.is_file():
        return None
    header, rows = read_rows(path)
    gene, programme = header.index("gene"), header.index("programme")
    programme_of = {row[gene]: row[programme] for row in rows}
    planted = {}
    for name in dict.fromkeys(programme_of.values()):
        follows = np.array([programme_of.get(g) == name for g in genes])
        if follows.any():
            planted[name] = follows
    return planted
