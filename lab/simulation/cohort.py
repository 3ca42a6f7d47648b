"""lab.simulation.cohort"""

import json
import os
from pathlib import Path

import numpy as np

from lab.files import InputError, read_rows, save_csv, save_file, save_text
from lab.progress import ordered_map, progress
from lab.simulation.tissue import COARSE, NUCLEI, SIM_MPP, draw_slide, trace, write_slide

OUTLINE_STEP = 2  # of those pixels: the steps of a tumour's outline              [ours]


DENSITY_FLOOR = 500.0  # cells/mm² added before the logarithm: what other cells give [ours]


R_RANGE = (0.97, 0.50)  # true R of the first and the last gene of a programme      [ours]


SPREAD, BASE = (
    (0.15, 0.50),
    (2.0, 6.0),
)  # SD of log10 FPKM-UQ between samples; its mean             [ours]


# Genes by the content they follow, closest first; a minus falls as it rises                       [ours]
PROGRAMMES = {
    "lymphocyte": """CD3D CD3E CD3G CD247 CD19 C1QB NKG7 CD53 ARHGAP9 C1QA CD2 CD5 CD27 CD8A CD8B CD4 CD79A MS4A1 LCK
        ZAP70 GZMA GZMK GZMB PRF1 IL7R CCR7 CXCR3 CXCL9 CCL5 CD52 PTPRC CORO1A SELL TRAT1 SH2D1A CTLA4 PDCD1 ITK""",
    "tumour": """MKI67 TOP2A CCNB1 CCNE1 CHEK2 CDK1 BUB1 BUB1B AURKA AURKB PLK1 CCNA2 CCNB2 CDC20 CDC6 CDC25C CDC45
        MCM2 MCM3 MCM4 MCM5 MCM6 MCM7 MCM10 PCNA FOXM1 MYBL2 E2F1 E2F2 TYMS RRM2 TK1 BIRC5 CENPA CENPE CENPF KIF11
        KIF20A KIF23 KIF2C TPX2 NUSAP1 UBE2C TTK NDC80 EXO1 RAD51 GINS1 ORC1 TACC3""",
    "stroma": """COL1A1 COL3A1 FAP ACTA2 COL1A2 COL5A1 COL5A2 COL6A1 COL6A2 COL6A3 COL10A1 COL11A1 COL12A1 FN1 SPARC
        THBS1 THBS2 POSTN LUM DCN BGN FBN1 FBLN1 FBLN2 VCAN LOX LOXL1 LOXL2 MMP2 MMP11 MMP14 TIMP2 TIMP3 PDGFRA
        PDGFRB TAGLN MYL9 CALD1 TPM2 CNN1 THY1 S100A4 VIM INHBA CTHRC1 ASPN OGN SFRP2 SFRP4 PDPN""",
    "epithelium": """ZG16 CLCA4 GUCA2A GUCA2B CA1 CA2 CA4 AQP8 SLC26A3 SLC26A2 MS4A12 CEACAM7 CEACAM1 CLCA1 FCGBP KRT20
        TMIGD1 BEST4 OTOP2 VSIG2 ITLN1 PLAC8 SLC4A4 CDHR5 MYO1A PHGR1 LYPD8 TSPAN1 PIGR KRT5 KRT14 ELF5 LTF SCGB2A2
        SCGB1D2 TFF3 MUC2""",
    "msi": """-MLH1 -EPM2AIP1 RPL22L1 -RPL22 REG4 AGR2 MUC5AC TFF1 TFF2 AGR3 -AXIN2 -NKD1 -RNF43 -ASCL2 -CAB39L -PRR15
        -TNNC2 HOXC6 DUSP4 -PLAGL2""",
    "housekeeping": """ACTB GAPDH HPRT1 TBP PPIA RPLP0 RPL13A RPS18 UBC YWHAZ SDHA HMBS GUSB PGK1 EEF1A1 EIF4A2 PSMB2
        PSMB4 RAB7A REEP5 SNRPD3 VCP VPS29 CHMP2A EMC7 GPI PUM1 IPO8 POLR2A CYC1""",
    "noise": " ".join(f"NOISE{i:03d}" for i in range(1, 76)),
    "silent": "MAGEA1 MAGEA3 MAGEA4 MAGEA10 SSX1 SSX2 CTAG2 PAGE1 XAGE2 DEFB4A",
}


SIM_README = """# A SIMULATED cohort: drawn, no patients

Redraw it: `tiling.simulate_cohort(folder, patients={patients}, seed={seed}, edge_px={edge_px}{more})`

Planted: four kinds of cells whose densities differ between slides and within them; a stain per slide, a scanner (mpp) per
project; genes that follow the cells of their own slides; MSI-H tumours with more lymphocytes, mucin and 20 genes of
their own; normal slides without tumour, each paired with a tumour.

- samples.csv: slide, patient, project, sample, sample_type, tumor 1/0, msi of the patient. Written last.
- points/: every nucleus drawn: x, y of its centre in level-0 pixels, cell.
- regions/: outlines of the tumours with the stroma between their nests, to {step} px; none for a normal slide.
- expression.csv: a row per sample, linear: log10(1+a) = base + effect * content + noise. content: log10(cells per mm2 + {floor:g})
  of the programme's cell (or MSI-H tumour, 0/1), mean of the sample's slides, standardised over samples.
- truth/slides.csv: cells, area inside the tissue outline (mm2), cells per mm2 of it, stain amounts, eosin mix, white.
- truth/genes.csv: programme, effect and noise (log10), base, true_r (expected R with content; 0 where none is followed).
"""


def plan_cohort(patients, seed, normal_in=4):
    """What samples.csv says of each slide and how its tissue is to look: a list of dicts of traits.

    Per project a fifth of the patients is MSI-H and a tenth MSI-L, a sixth has a second tumour slide and
    one in normal_in a normal one. Lymphocytes span a factor above 10 between patients.
    """
    rng, slides = np.random.default_rng([seed, 0]), []
    for number, project in enumerate(SIM_MPP):
        count = (patients + 1 - number) // 2
        high, low = max(1, round(0.2 * count)), round(0.1 * count)
        for i, msi in enumerate(
            rng.permutation(["MSI-H"] * high + ["MSI-L"] * low + ["MSS"] * (count - high - low))
        ):
            share, spacing, lymphocytes = (
                rng.uniform(0.2, 0.75),
                rng.uniform(10.5, 15),
                10 ** rng.uniform(2.1, 3.2),
            )
            glands, fat = (
                rng.uniform(0, 0.4),
                rng.uniform(0.02, 0.15) if project == "SIM-COLO" else rng.uniform(0.1, 0.45),
            )
            for tumour, name in (
                [(1, "DX1")]
                + [(1, "DX2")] * (i % 6 == 0)
                + [(0, "DX1")] * (i % normal_in == (normal_in > 1))
            ):
                sample = f"S{2 * i + number + 1:03d}-{'01A' if tumour else '11A'}"
                slides.append(
                    dict(
                        slide=f"{sample}-{name}",
                        patient=sample[:4],
                        project=project,
                        sample=sample,
                        sample_type="Primary Tumor" if tumour else "Solid Tissue Normal",
                        tumor=tumour,
                        msi=str(msi),
                        tumour=share * rng.uniform(0.85, 1.15) * tumour,
                        spacing=spacing,
                        fat=fat,
                        glands=glands if tumour else rng.uniform(0.6, 0.9),
                        lymphocytes=lymphocytes
                        * 10 ** rng.normal(0, 0.06)
                        * (0.4 if not tumour else 2.2 if msi == "MSI-H" else 1),
                    )
                )
    return slides


def planted_programmes(cohort, genes):
    """{programme: (G,) which genes are of it} of a simulated cohort; None of another."""
    path = Path(cohort) / "truth" / "genes.csv"
    if not path.is_file():
        return None
    header, rows = read_rows(path)
    programme = {row[header.index("gene")]: row[header.index("programme")] for row in rows}
    of = {
        p: np.array([programme.get(g) == p for g in genes])
        for p in dict.fromkeys(programme.values())
    }
    return {p: which for p, which in of.items() if which.any()}


def simulate_expression(truth, seed):
    """Rows of expression.csv and of truth/genes.csv from those of truth/slides.csv.

    log10(1 + a) = base + effect * content + noise: content is the standardised log10 density of the programme's cells (or
    MSI-H tumour, 0/1), the mean of the sample's slides. A gene of spread SD has effect R SD and noise of sqrt(1 - R^2) SD,
    so that it correlates R with its content.
    """
    rng, genes, values = np.random.default_rng([seed, len(truth) + 1]), [], []
    samples = list(dict.fromkeys(row["sample"] for row in truth))
    for programme, names in PROGRAMMES.items():
        per_slide = [
            float(row["tumor"] and row["msi"] == "MSI-H")
            if programme == "msi"
            else np.log10(row.get(f"{programme}_per_mm2", 0.0) + DENSITY_FLOOR)
            for row in truth
        ]
        content = np.array(
            [
                np.mean([v for v, row in zip(per_slide, truth) if row["sample"] == s])
                for s in samples
            ]
        )
        content = (content - content.mean()) / max(content.std(), 1e-9)
        for name, r in zip(names.split(), np.linspace(*R_RANGE, len(names.split()))):
            spread, base, sign = (
                rng.uniform(*SPREAD),
                rng.uniform(*BASE),
                -1 if name[0] == "-" else 1,
            )
            if programme in ("housekeeping", "noise", "silent"):
                r, spread = 0.0, 0.05 if programme == "housekeeping" else spread
            effect, noise = sign * r * spread, np.sqrt(1 - r**2) * spread
            log = base + effect * content + noise * rng.standard_normal(len(samples))
            if programme == "silent":  # on in a quarter of the samples: median 0
                log *= rng.permutation(len(samples)) < len(samples) / 4
            values.append((10 ** log.clip(0) - 1).tolist())
            genes.append(
                dict(
                    gene=name.strip("-"),
                    programme=programme,
                    effect=effect,
                    noise=float(noise),
                    base=base,
                    true_r=float(sign * r),
                )
            )
    names = [gene["gene"] for gene in genes]
    return [dict(sample=s, **dict(zip(names, row))) for s, row in zip(samples, zip(*values))], genes


def simulate_cohort(folder, patients=64, seed=0, edge_px=1800, normal_in=4, workers=None):
    """Write a SIMULATED cohort with known truth (see its README.md) into `folder`.

    The same files for any number of workers. One already complete with the same settings is left as it is, one that was
    interrupted is drawn again. Raises InputError for a folder that holds anything else.
    """
    if patients < 4 or edge_px < 400 or seed < 0 or normal_in < 1:
        raise InputError(
            f"patients {patients}, edge_px {edge_px}, seed {seed}, normal_in {normal_in}: at least 4 patients, "
            "400 px, seed 0 and 1"
        )
    folder, slides, truth = Path(folder), plan_cohort(patients, seed, normal_in), []
    readme = folder / "README.md"
    text = SIM_README.format(
        patients=patients,
        seed=seed,
        edge_px=edge_px,
        floor=DENSITY_FLOOR,
        more=f", normal_in={normal_in}" * (normal_in != 4),
        step=COARSE * OUTLINE_STEP,
    )
    there = readme.read_text(errors="replace") if readme.is_file() else ""
    if folder.exists() and any(folder.iterdir()) and there != text:
        raise InputError(
            f"{folder} is "
            + (
                "a simulated cohort of other settings"
                if "SIMULATED" in there
                else "not empty and not a simulated cohort"
            )
            + ": give a new folder, or delete it"
        )
    if (folder / "samples.csv").exists():
        return
    save_file(readme, lambda f: f.write(text.encode()))

    def draw(index):
        t = slides[index]
        rgb, points, area, stain, tumour = draw_slide(seed, index + 1, t, edge_px)
        write_slide(folder / "slides" / f"{t['slide']}.tif", rgb, SIM_MPP[t["project"]])
        save_csv(folder / "points" / f"{t['slide']}.csv", ("x", "y", "cell"), points)
        step = OUTLINE_STEP * COARSE
        shapes = [
            dict(
                type="Feature",
                properties=dict(objectType="annotation", classification=dict(name="Tumor")),
                geometry=dict(
                    type="Polygon",
                    coordinates=[[[step * x, step * y] for x, y in ring] for ring in rings],
                ),
            )
            for rings in trace(
                tumour[OUTLINE_STEP // 2 :: OUTLINE_STEP, OUTLINE_STEP // 2 :: OUTLINE_STEP]
            )
        ]
        if shapes:
            save_text(
                folder / "regions" / f"{t['slide']}.geojson",
                [json.dumps(dict(type="FeatureCollection", features=shapes))],
            )
        counts = {cell: sum(point[2] == cell for point in points) for cell in NUCLEI}
        return {
            **{k: t[k] for k in ("slide", "sample", "tumor", "msi")},
            **counts,
            "tissue_mm2": area,
            **{f"{cell}_per_mm2": counts[cell] / area for cell in NUCLEI},
            **stain,
        }

    tick = progress("SIMULATED slides", len(slides), "slides")
    for _, row in ordered_map(draw, range(len(slides)), workers or os.cpu_count()):
        if isinstance(row, Exception):
            raise row
        truth.append(row)
        tick()
    expression, genes = simulate_expression(truth, seed)
    columns = ("slide", "patient", "project", "sample", "sample_type", "tumor", "msi")
    for name, rows in (
        ("expression.csv", expression),
        ("truth/slides.csv", truth),
        ("truth/genes.csv", genes),
        ("samples.csv", [{k: t[k] for k in columns} for t in slides]),
    ):  # last: it says "complete"
        save_csv(
            folder / name,
            rows[0],
            ([f"{v:.6g}" if isinstance(v, float) else v for v in row.values()] for row in rows),
        )
