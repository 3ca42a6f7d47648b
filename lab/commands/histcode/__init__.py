"""HistCode: tile features learned without labels, to diagnose tumours and tell which genes change.

Huang et al. 2022, arXiv:2204.11994.

    python histcode.py pretrain COHORT                     two views of a tile against a bank
    torchrun --nproc-per-node 8 histcode.py pretrain COHORT    the same on 8 GPUs
    python histcode.py probe COHORT COHORT/runs/adco/adco.pt random      does it learn?
    python histcode.py diagnose COHORT --encoder FILE --rotate     tumour or normal
    python histcode.py expression COHORT --encoder FILE    which genes change between these
    python histcode.py ablation COHORT --encoders FILE FILE    encoders x poolings on that task
    python histcode.py predict RUN SLIDE...                new slides
    python histcode.py heatmap RUN SLIDE...                where the models look
    python histcode.py audit COHORT                        what each choice is worth

COHORT holds slides/, samples.csv (slide,patient,project[,tumor,...]) and expression.csv for fold
changes. What comes out stands in COHORT/runs/NAME/, which is RUN. A command that was interrupted
goes on where it was.
"""

from lab.commands.options import prepared

VERBS = {
    "pretrain": "learn tile features without labels",
    "probe": "how well frozen features tell the cells in a tile",
    "diagnose": "tell tumour from normal slides, or any two labels",
    "expression": "predict the fold change of each gene, tumour against normal",
    "ablation": "encoders x poolings against each other on fold changes (Fig. 6)",
    "predict": "diagnose new slides, or predict their fold changes",
    "heatmap": "where the models look, on the slide",
    "choices": "where paper and authors' code differ, and what is done here",
    "audit": "each choice turned alone: what it changes",
}
SHARED = ("pretrain", "diagnose", "expression", "ablation")  # by several processes [ours]


def prepare(argv=None):
    return prepared("histcode", __doc__, VERBS, SHARED, argv)


def main(argv=None):
    return prepare(argv)()
