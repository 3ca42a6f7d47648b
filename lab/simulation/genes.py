"""The genes of the simulated cohort: which cells they follow, and how closely."""

import numpy as np

DENSITY_FLOOR = 500.0  # cells/mm² added before the logarithm: what other cells give  [ours]
R_RANGE = (0.97, 0.50)  # true R of the first and the last gene of a programme  [ours]
SPREAD = (0.15, 0.50)  # SD of log10 FPKM-UQ between samples  [ours]
BASE = (2.0, 6.0)  # mean of log10 FPKM-UQ  [ours]
CONSTANT_SPREAD = 0.05  # SD of housekeeping genes  [ours]
SILENT_SHARE = 1 / 4  # of the samples in which a silent gene is on: its median is 0  [ours]
FOLLOWS_NOTHING = ("housekeeping", "noise", "silent")
# Genes by the content they follow, closest first; one with a minus falls as it rises.  [ours]
PROGRAMMES = {
    "lymphocyte": """CD3D CD3E CD3G CD247 CD19 C1QB NKG7 CD53 ARHGAP9 C1QA CD2 CD5 CD27 CD8A CD8B
        CD4 CD79A MS4A1 LCK ZAP70 GZMA GZMK GZMB PRF1 IL7R CCR7 CXCR3 CXCL9 CCL5 CD52 PTPRC CORO1A
        SELL TRAT1 SH2D1A CTLA4 PDCD1 ITK""",
    "tumour": """MKI67 TOP2A CCNB1 CCNE1 CHEK2 CDK1 BUB1 BUB1B AURKA AURKB PLK1 CCNA2 CCNB2 CDC20
        CDC6 CDC25C CDC45 MCM2 MCM3 MCM4 MCM5 MCM6 MCM7 MCM10 PCNA FOXM1 MYBL2 E2F1 E2F2 TYMS RRM2
        TK1 BIRC5 CENPA CENPE CENPF KIF11 KIF20A KIF23 KIF2C TPX2 NUSAP1 UBE2C TTK NDC80 EXO1 RAD51
        GINS1 ORC1 TACC3""",
    "stroma": """COL1A1 COL3A1 FAP ACTA2 COL1A2 COL5A1 COL5A2 COL6A1 COL6A2 COL6A3 COL10A1 COL11A1
        COL12A1 FN1 SPARC THBS1 THBS2 POSTN LUM DCN BGN FBN1 FBLN1 FBLN2 VCAN LOX LOXL1 LOXL2 MMP2
        MMP11 MMP14 TIMP2 TIMP3 PDGFRA PDGFRB TAGLN MYL9 CALD1 TPM2 CNN1 THY1 S100A4 VIM INHBA
        CTHRC1 ASPN OGN SFRP2 SFRP4 PDPN""",
    "epithelium": """ZG16 CLCA4 GUCA2A GUCA2B CA1 CA2 CA4 AQP8 SLC26A3 SLC26A2 MS4A12 CEACAM7
        CEACAM1 CLCA1 FCGBP KRT20 TMIGD1 BEST4 OTOP2 VSIG2 ITLN1 PLAC8 SLC4A4 CDHR5 MYO1A PHGR1
        LYPD8 TSPAN1 PIGR KRT5 KRT14 ELF5 LTF SCGB2A2 SCGB1D2 TFF3 MUC2""",
    "msi": """-MLH1 -EPM2AIP1 RPL22L1 -RPL22 REG4 AGR2 MUC5AC TFF1 TFF2 AGR3 -AXIN2 -NKD1 -RNF43
        -ASCL2 -CAB39L -PRR15 -TNNC2 HOXC6 DUSP4 -PLAGL2""",
    "housekeeping": """ACTB GAPDH HPRT1 TBP PPIA RPLP0 RPL13A RPS18 UBC YWHAZ SDHA HMBS GUSB PGK1
        EEF1A1 EIF4A2 PSMB2 PSMB4 RAB7A REEP5 SNRPD3 VCP VPS29 CHMP2A EMC7 GPI PUM1 IPO8 POLR2A
        CYC1""",
    "noise": " ".join(f"NOISE{i:03d}" for i in range(1, 76)),
    "silent": "MAGEA1 MAGEA3 MAGEA4 MAGEA10 SSX1 SSX2 CTAG2 PAGE1 XAGE2 DEFB4A",
}


def simulate_expression(slides, seed):
    """Rows of expression.csv and of truth/genes.csv from the rows of truth/slides.csv.

    log10(1 + a) = base + effect * content + noise. Content is that of `content_of`. A gene whose
    values spread by SD has an effect of R SD and a noise of sqrt(1 - R²) SD, so that it correlates
    R with its content.
    """
    rng = np.random.default_rng([seed, len(slides) + 1])
    samples = list(dict.fromkeys(row["sample"] for row in slides))
    expression = [{"sample": sample} for sample in samples]
    genes = []
    for programme, names in PROGRAMMES.items():
        content = content_of(programme, slides, samples)
        names = names.split()
        for name, r in zip(names, np.linspace(*R_RANGE, len(names)), strict=True):
            spread = rng.uniform(*SPREAD)
            base = rng.uniform(*BASE)
            if programme in FOLLOWS_NOTHING:
                r = 0.0
            if programme == "housekeeping":
                spread = CONSTANT_SPREAD
            if name.startswith("-"):
                r = -r
            effect = r * spread
            noise = float(np.sqrt(1 - r**2) * spread)
            log = base + effect * content + noise * rng.standard_normal(len(samples))
            if programme == "silent":
                log *= rng.permutation(len(samples)) < len(samples) * SILENT_SHARE
            gene = name.strip("-")
            for row, value in zip(expression, 10 ** log.clip(0) - 1, strict=True):
                row[gene] = float(value)
            truth = {"effect": effect, "noise": noise, "base": base, "true_r": float(r)}
            genes.append({"gene": gene, "programme": programme, **truth})
    return expression, genes


def content_of(programme, slides, samples):
    """What a programme follows (samples,), standardised: the mean of the sample's slides.

    The log10 density of its cells; for "msi" whether the slide is of an MSI-H tumour.
    """
    per_slide = []
    for row in slides:
        if programme == "msi":
            per_slide.append(float(row["tumor"] and row["msi"] == "MSI-H"))
        else:
            per_slide.append(np.log10(row.get(f"{programme}_per_mm2", 0.0) + DENSITY_FLOOR))
    content = np.empty(len(samples))
    for i, sample in enumerate(samples):
        own = [v for v, row in zip(per_slide, slides, strict=True) if row["sample"] == sample]
        content[i] = np.mean(own)
    return (content - content.mean()) / max(content.std(), 1e-9)
