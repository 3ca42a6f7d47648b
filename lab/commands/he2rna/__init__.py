"""HE2RNA: the expression of every gene from a slide, learned from slide-level RNA-Seq alone.

Schmauch et al., Nature Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4.

    python he2rna.py train                   draws a simulated cohort into demo/, trains, reports
    python he2rna.py train COHORT            your slides and expression table -> report
    python he2rna.py train COHORT --features DIR     features made elsewhere (CLAM, TRIDENT)
    torchrun --nproc-per-node 5 he2rna.py train COHORT       the same, a fold for each process
    python he2rna.py finetune COHORT RUN --project LIHC --genes CD3D,CD3E      on all tiles
    python he2rna.py predict RUN SLIDE...    expression of slides that have none
    python he2rna.py heatmap RUN SLIDE... --genes CD3D,CD3E  where on the slide
    python he2rna.py signatures RUN --gmt FILE...    pathways of the well-predicted genes
    python he2rna.py msi COHORT              hospital A's transcriptome for MSI in hospital B

COHORT holds samples.csv (slide,patient,project[,sample,...]), slides/ and expression.csv (.csv.gz,
.npz). What comes out stands in COHORT/runs/NAME/: report.md and its pictures, genes.csv,
predictions.npz, folds.csv, fold*.pt, log.jsonl.
"""

from lab.commands.options import prepared

VERBS = {
    "expression": "a folder of GDC downloads -> the expression table of a cohort",
    "samples": "a cohort's TCGA slides and expression table -> its samples.csv",
    "train": "cross-validate, test significance, write the report",
    "finetune": "go on with all tiles, for all or chosen genes",
    "predict": "expression of new slides, as csv",
    "heatmap": "where on the slide, and against the truth",
    "signatures": "pathways against random lists of genes",
    "enrich": "pathways of the well-predicted genes",
    "msi": "hospital A, hospital B: what A's transcriptome is worth for MSI in B",
    "choices": "where paper and authors' code differ, and what is done here",
    "audit": "each choice turned alone: what it changes",
}
SHARED = ("train", "finetune", "msi")  # several processes share their work [ours]


def prepare(argv=None):
    return prepared("he2rna", __doc__, VERBS, SHARED, argv)


def main(argv=None):
    return prepare(argv)()
