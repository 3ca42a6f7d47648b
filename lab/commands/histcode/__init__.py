"""HistCode: tile features learned without labels, pooled by attention to diagnose tumours and to tell which genes change.

Huang et al., "Contrastive learning-based computational histopathology predict differential expression of cancer driver
genes" (2022), arXiv:2204.11994. Two views of a tile must lie nearer to each other than to a bank of negatives, and the
negatives are moved to make that as hard as can be: one min-max objective [HistCode eqs. 1-4; AdCo, arXiv:2011.08435]. The
encoder then stays as it is: gated attention pools a slide's tiles [eqs. 5-6], a layer diagnoses [eq. 7], and the tiles of
highest and lowest attention predict fold changes [eq. 8]. The file reads in the order of the paper's Methods; the commands
stand at its end.

    python histcode.py pretrain COHORT                      -> COHORT/runs/adco/adco.pt, log.jsonl, config.json
    python histcode.py pretrain COHORT --method simclr      the same loop with SimCLR's loss, to compare
    python histcode.py pretrain COHORT --show-views         only runs/adco/views.png: what the two views look like
    python histcode.py probe COHORT COHORT/runs/adco/adco.pt random   does it learn? R2 of the cells in a tile
    torchrun --nproc-per-node 8 histcode.py pretrain COHORT              the same on 8 GPUs; --batch stays the whole batch
    python histcode.py diagnose COHORT --encoder FILE --rotate   tumour or normal (--table: the six rows of Table 1)
    python histcode.py diagnose --bags musk1.csv            the same on a multiple-instance table: label, bag, features
    python histcode.py expression COHORT --encoder FILE     which genes change between tumour and normal tissue (Figs. 4-9)
    python histcode.py ablation COHORT --encoders FILE FILE encoders x poolings on that task (Fig. 6)
    python histcode.py heatmap RUN SLIDE...                 where the models look (Figs. 10, 11); predict RUN SLIDE...
    python histcode.py choices                              where paper and authors' code differ, and what is done here
    python histcode.py pretrain COHORT --code in-batch --name in-batch      one of them turned to its other side
    python histcode.py audit [COHORT]                       what each is worth -> COHORT/runs/histcode-audit/audit.md

COHORT is a folder with slides/ and samples.csv, as for tiling.py, and expression.csv for fold changes; RUN is
COHORT/runs/NAME. A command that was interrupted goes on where it was.

Glossary: B tiles (or slides) of a batch, K negatives in the bank, d numbers of an embedding, D features, h embedding before
the two layers, q and k the unit embeddings of a tile's two views, w a raw negative, tau temperature; T tiles of a slide,
a their attention, z the slide's vector, C classes or outputs, M networks trained as one, G genes, P patients with tumour
and normal expression, fc fold change, y = log10(fc + 1).
Tags: [HistCode ...] the paper, [HistCode code] and [AdCo code] only the authors' released code, [ours] our choice.
"""

from lab.commands.options import run_program

from . import ablation, audit, choices, diagnose, expression, heatmap, predict, pretrain, probe

VERBS = {
    "pretrain": (pretrain, "learn tile features without labels"),
    "probe": (probe, "how well frozen features tell the cells in a tile"),
    "diagnose": (
        diagnose,
        "tell tumour from normal slides, or any two labels, by the features of their tiles",
    ),
    "expression": (
        expression,
        "predict the fold change of each gene between tumour and normal tissue",
    ),
    "ablation": (ablation, "encoders x poolings against each other on fold changes (Fig. 6)"),
    "predict": (predict, "diagnose new slides, or predict their fold changes"),
    "heatmap": (heatmap, "where the models look, on the slide"),
    "choices": (
        choices,
        "where paper and authors' code differ or are silent, and what is done here",
    ),
    "audit": (audit, "each choice turned alone: what it changes"),
}
SHARED = (
    "pretrain",
    "diagnose",
    "expression",
    "ablation",
)  # several processes share them out  [ours]


def main(argv=None):
    return run_program("histcode.py", __doc__, VERBS, SHARED, argv)
