"""HE2RNA: the expression of every gene from a slide, learned from slide-level RNA-Seq alone.

Schmauch et al., "A deep learning model to predict RNA-Seq expression of tumours from whole slide images", Nature
Communications 11:3877 (2020), doi:10.1038/s41467-020-17678-4 (preprint bioRxiv 760173). A multilayer perceptron scores
every tile for every gene; the slide's prediction is the mean of the k highest tile scores, k drawn anew at each
iteration. Cross-validated by patient, R per gene within each cancer, significance corrected over all genes. The file
reads in the order of the paper's Methods; the commands stand at its end.

    python he2rna.py expression GDC_DIR --sheet FILE --out COHORT/expression.npz     a folder of GDC downloads -> a table
    python he2rna.py samples COHORT --sheet FILE     COHORT/slides of TCGA, joined to that table -> COHORT/samples.csv
    python he2rna.py train                   draws a simulated cohort into demo/, trains on it, writes a report
    python he2rna.py train COHORT            your slides and expression table -> per-gene, per-cancer report
    python he2rna.py train COHORT --features DIR     the same from features made elsewhere (CLAM, TRIDENT: .h5, .pt)
    torchrun --nproc-per-node 5 he2rna.py train COHORT       the same, a fold for each process
    python he2rna.py finetune COHORT RUN --project LIHC --genes CD3D,CD3E,CD3G,CD247     all tiles, one cancer, chosen genes
    python he2rna.py predict RUN SLIDE...    expression of slides that have none -> RUN/predict/<slide>.csv
    python he2rna.py signatures RUN --gmt F...   python he2rna.py enrich RUN --gmt F...  pathways of the well-predicted genes
    python he2rna.py heatmap RUN SLIDE... --genes CD3D,CD3E      where on the slide, best and worst tiles, against the truth
    python he2rna.py msi COHORT|FILE.npz     hospital A's transcriptome for MSI in hospital B: what it is worth
    python he2rna.py choices                 where paper and authors' code differ or are silent, and what is done here
    python he2rna.py audit [COHORT]          each that --code can turn, turned alone: what it changes

COHORT holds samples.csv (slide,patient,project[,sample,...]), slides/ and expression.csv (.csv.gz, .npz). What comes out
stands in COHORT/runs/<name>/: report.md and its pictures, genes.csv, predictions.npz, folds.csv, fold*.pt, log.jsonl.

Glossary: B slides of a batch, S all slides, T (super-)tiles of a slide, N tiles of several slides end to end, D features, H
neurons of the last hidden layer, G genes, P cancers (in msi: patients), M models, k tiles kept (in evaluation: folds), K
values of k, n samples, g genes of a block, a FPKM-UQ.
Tags: [HE2RNA ...] the paper, [HE2RNA code] only the authors' released code, [ours] our choice.
"""

from lab.commands.options import run_program

from . import (
    audit,
    choices,
    enrich,
    expression,
    finetune,
    heatmap,
    msi,
    predict,
    samples,
    signatures,
    train,
)

VERBS = {
    "expression": (expression, "a folder of GDC downloads -> the expression table of a cohort"),
    "samples": (samples, "a cohort's TCGA slides and expression table -> its samples.csv"),
    "train": (train, "cross-validate, test significance, write the report"),
    "finetune": (finetune, "go on with all tiles, for all or chosen genes"),
    "predict": (predict, "expression of new slides, as csv"),
    "heatmap": (heatmap, "where on the slide, and against the truth"),
    "signatures": (signatures, "pathways against random lists of genes"),
    "enrich": (enrich, "pathways of the well-predicted genes"),
    "msi": (msi, "hospital A, hospital B: what A's transcriptome is worth for MSI in B"),
    "choices": (
        choices,
        "where paper and authors' code differ or are silent, and what is done here",
    ),
    "audit": (audit, "each choice turned alone: what it changes"),
}
SHARED = ("train", "finetune", "msi")  # several processes share them out  [ours]


def main(argv=None):
    return run_program("he2rna.py", __doc__, VERBS, SHARED, argv)
