"""Which cells a gene marks, and which of a slide's classes of cells are those.

Well-known markers alone: of any other gene nothing is said. [ours]
"""

import re

# words of a class, the closest first: the genes. Words begin a word of the class's name.
MARKERS = {
    "t cell, t-cell, cd3, til, lymph, immune, inflam, leuko": """CD3D CD3E CD3G CD247 CD2 CD5 CD7
        CD4 CD8A CD8B TRAC TRBC1 TRBC2 LCK ZAP70 ITK CD28 CTLA4 PDCD1 IL7R CCR7 GZMK FOXP3
        ENSG00000167286 ENSG00000198851 ENSG00000160654 ENSG00000198821""",
    "b cell, b-cell, cd20, lymph, immune, inflam, leuko": """CD19 CD20 MS4A1 CD79A CD79B CD22
        PAX5 BLK""",
    "plasma, b cell, b-cell, lymph, immune, inflam, leuko": """IGKC IGLC1 IGLC2 IGLC3 IGHG1 IGHG2
        IGHG3 IGHG4 IGHA1 IGHA2 IGHM JCHAIN MZB1 SDC1 XBP1""",
    "nk cell, nk-cell, lymph, immune, inflam, leuko": "NKG7 GNLY NCAM1 KLRD1 PRF1 GZMB",
    "lymph, immune, inflam, leuko": "PTPRC CD45 CD53 CD52 CORO1A SELL CCL5 CXCL9",
    "macroph, myeloid, monocyt, histiocyt, immune, inflam, leuko": """CD68 CD163 CD14 CSF1R LYZ
        ITGAM C1QA C1QB C1QC MRC1 AIF1""",
    "neutroph, granulocyt, myeloid, immune, inflam, leuko": "S100A8 S100A9 CSF3R MPO ELANE",
    "endothel, vessel, vascul": "PECAM1 CD31 VWF CDH5 CD34 KDR CLDN5",
    "fibro, caf, strom, connective, mesenchym, spindle": """COL1A1 COL1A2 COL3A1 COL5A1 COL6A1
        COL6A3 DCN LUM FAP PDGFRA PDGFRB POSTN THY1""",
    "muscle, pericyt, pvl, strom, connective": "ACTA2 TAGLN MYH11 DES CNN1 RGS5",
    "tumor, tumour, cancer, carcinom, neoplas, malign, epithel": """EPCAM CDH1 KRT7 KRT8 KRT18
        KRT19 ERBB2 MUC1 CEACAM5 MKI67 TOP2A PCNA CCNB1""",
    "epithel, gland, tumor, tumour, cancer, neoplas": "KRT5 KRT14 KRT20 CA1 CA2 ZG16 CLCA4 MUC2",
    "adipo, fat": "ADIPOQ FABP4 PLIN1 LEP",
}
NOT_THEY = re.compile(r"\b(non|not|no|without|other)\b|negative")


def words_of(gene):
    """The words of the classes that a gene marks, the closest first; () of other genes."""
    name = gene.upper().split(".")[0]  # an Ensembl id may have a version
    for words, genes in MARKERS.items():
        if name in genes.split():
            return tuple(words.split(", "))
    return ()


def marked_class(genes, classes):
    """The class of cells that most of some genes mark, of the names `classes`; None where none is.

    Of several that fit equally well the first.
    """
    fits = [words for gene in genes if (words := words_of(gene))]
    if 2 * len(fits) < len(genes) or not fits:
        return None
    for word in max(fits, key=fits.count):
        begins = re.compile(rf"(\b|_){re.escape(word)}")
        for kind in classes:
            plain = kind.lower()
            if begins.search(plain) and not NOT_THEY.search(plain):
                return kind
    return None
