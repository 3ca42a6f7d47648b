"""Which class of cells a gene marks. Authority: textbooks' markers, by hand."""

import pytest

from lab.cohort.markers import marked_class


@pytest.mark.parametrize(
    "genes, classes, want",
    [
        (["CD3D", "CD3E", "CD3G", "CD247"], ["all cells", "stroma", "lymphocyte"], "lymphocyte"),
        (["CD3E"], ["B-cells", "T-cells", "Lymphocytes"], "T-cells"),
        (["cd3e"], ["Immune cells", "Tumor"], "Immune cells"),
        (["ENSG00000167286.15"], ["TIL", "tumour"], "TIL"),
        (["CD19"], ["T-cells", "fraction:B-cells"], "fraction:B-cells"),
        (["IGKC"], ["fraction:B-cells", "fraction:Plasma Cells"], "fraction:Plasma Cells"),
        (["EPCAM"], ["non-tumor", "Necrosis", "Tumor"], "Tumor"),
        (["COL1A1", "NOISE1"], ["CAFs", "T cell"], "CAFs"),
        (["CD3D"], ["non-lymphocyte", "Lymphocyte: Negative", "other lymphoid"], None),
        (["CD3D"], ["tumour", "utilities"], None),
        (["TP53"], ["tumour", "lymphocyte"], None),
        (["CD3D", "TP53", "MYC"], ["lymphocyte"], None),
        (["CD3D"], [], None),
    ],
)
def test_the_cells_that_genes_mark(genes, classes, want):
    assert marked_class(genes, classes) == want
