"""Patients with tumour and matched normal expression: worked by hand."""

import csv
import gzip
import io

import numpy as np
import pytest

from lab.files import InputError, save_csv
from lab.histcode.options import DRIVERS
from lab.histcode.pairs import bags_of_pairs, chosen_genes, driver_genes, pairs_of
from lab.tests.helpers import real
from lab.tests.helpers_histcode import change_table

SAMPLES = """slide,patient,project,sample,tumor
a1,A,X,sa,1
a2,A,X,sa,1
a0,A,X,na,0
b1,B,X,sb,1
b0,B,X,nb,0
t1,TCGA-AA-0001,X,TCGA-AA-0001-01A,1
c1,C,X,sc,1
d0,D,X,nd,0
e0,E,X,ne,0
e1,E,X,se,
u,U,X,su,
"""
TCGA = "TCGA-AA-0001-01A TCGA-AA-0001-01B TCGA-AA-0001-11A"
ROWS = f"sa na sb nb {TCGA} sc nd ne se su TCGA-ZZ-9999-01A TCGA-ZZ-9999-11A".split()


@pytest.fixture
def cohort(tmp_path):
    """Row i of the expression table has i of gene G, 100 - i of gene H."""
    (tmp_path / "samples.csv").write_text(SAMPLES)
    rows = [(name, i, 100 - i) for i, name in enumerate(ROWS)]
    save_csv(tmp_path / "expression.csv", ("sample", "G", "H"), rows)
    return tmp_path


def test_pairs_of_a_table_worked_by_hand(cohort):
    p = pairs_of(cohort)
    assert p.patients.tolist() == ["A", "B", "TCGA-AA-0001"]  # the last has no normal slide
    assert p.slides == [["a1", "a2"], ["b1"], ["t1"]]
    assert p.genes == ["G", "H"]
    tumour = np.array([[0, 100], [2, 98], [4.5, 95.5]])  # two samples of a patient: their mean
    normal = np.array([[1, 99], [3, 97], [6, 94]])
    assert np.allclose(p.y, np.log10(tumour / normal + 1), atol=1e-7)
    assert p.label.tolist() == [[1, 0], [0, 0], [0, 0]]
    assert list(p.left_out.values()) == [
        ["C"],  # no normal expression
        ["D", "E"],  # no tumour expression
        ["TCGA-ZZ-9999"],  # no slide
        ["se", "su"],  # rows of no known tissue
        ["e1", "u"],  # slides of no known tissue
    ]
    assert list(p.known) == ["a0", "a1", "a2", "b0", "b1", "c1", "d0", "e0", "t1"]  # sorted
    assert [tissue for _, tissue in p.known.values()] == [0, 1, 1, 0, 1, 1, 0, 0, 1]
    assert pairs_of(cohort, "both").slides == [["a0", "a1", "a2"], ["b0", "b1"], ["t1"]]


def test_a_normal_sample_without_a_slide_is_known_by_the_sheets_table(cohort):
    """As he2rna.py expression writes it of CPTAC, whose names say no tissue."""
    path = cohort / "expression_samples.csv"
    rows = [("nd", "C", "X", "Solid Tissue Normal"), ("su", "C", "X", "Metastatic")]
    (cohort / "samples.csv").write_text(SAMPLES.replace("d0,D,X,nd,0\n", "").replace("su", "sv"))
    save_csv(path, ("sample", "patient", "project", "sample_type"), rows)
    p = pairs_of(cohort)
    assert p.patients.tolist() == ["A", "B", "C", "TCGA-AA-0001"]
    assert np.allclose(p.y[2], np.log10(np.array([7 / 8, 93 / 92]) + 1), atol=1e-7)
    assert "su" in p.left_out["expression rows of no known patient or tissue"]
    save_csv(path, ("sample", "patient"), [("nd", "C")])
    with pytest.raises(InputError, match="wanted columns sample, patient, sample_type"):
        pairs_of(cohort)


def test_a_sample_of_two_patients_is_refused(cohort):
    def b0_is_sa(rows):
        return [[*r[:3], "sa" if r[0] == "b0" else r[3], r[4]] for r in rows]

    change_table(cohort / "samples.csv", b0_is_sa)
    with pytest.raises(InputError, match=r"samples.csv: sample sa is \('A', 1\) and \('B', 0\)"):
        pairs_of(cohort)


def test_a_pair_has_all_tiles_of_its_slides_or_is_left_out(cohort):
    tiles = {name: np.full((i, 2), i, np.float16) for i, name in enumerate(("a1", "b1", "t1"), 2)}
    slides = {
        "names": np.array(list(tiles)),
        "bag": lambda i: list(tiles.values())[i],
        "sums": [(len(h), h.sum(0), (h**2).sum(0)) for h in tiles.values()],
        "n_features": 2,
    }
    p = pairs_of(cohort).with_slides(slides["names"])
    assert p.patients.tolist() == ["B", "TCGA-AA-0001"] and len(p.y) == 2  # a2 is not there
    assert p.left_out["pairs of which a slide failed"] == ["A"]
    p.slides[1] = ["b1", "t1"]
    bags = bags_of_pairs(p, slides)
    assert bags["bag"](1).tolist() == [[3, 3]] * 3 + [[4, 4]] * 4
    assert bags["sums"][1][0] == 7 and bags["sums"][1][1].tolist() == [25, 25]
    assert bags["sums"][1][2].tolist() == [91, 91]


def test_genes_without_a_fold_change_in_half_of_the_pairs_are_left_out(changed, tmp_path):
    p = chosen_genes(pairs_of(changed))
    assert p.genes == ["UP0", "UP1", "UP2", "NO0", "NO1", "HALF"]
    assert ["OFF", "SAME"] in p.left_out.values()
    assert p.ledger["gene filter"] == p.patients.tolist()
    (tmp_path / "d.csv").write_text("symbol,mutations\nUP1,3\nNO1,9\nZZ,8\nUP0,2\n")
    p = chosen_genes(pairs_of(changed), drivers=tmp_path / "d.csv", top=3)
    assert p.genes == ["NO1", "UP1"] and p.y.shape[1] == 2
    assert p.left_out["of the 3 driver genes, without expression"] == ["ZZ"]


def test_driver_genes_are_the_most_mutated_over_all_cohorts(tmp_path):
    path = tmp_path / "d.tsv"
    rows = "A\tTP53\t5.0\nB\tKRAS\t6\nB\tTP53\t2\nA\tAPC\t\nA\tPTEN\t6\nA\tZ\t.5\n"
    path.write_text("COHORT\tSymbol\tMUTATIONS\n" + rows)
    assert driver_genes(path, 3) == ["TP53", "KRAS", "PTEN"]
    assert driver_genes(path, 99)[3:] == ["Z", "APC"]
    for text, words in (
        ("gene,samples\nTP53,3\n", "wanted columns symbol and mutations; it has gene, samples"),
        ("cohort,gene,mutations\nA,TP53,3\nB\n", "row 3 has 1 fields, the header has 3"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"d\.tsv.*{words}"):
            driver_genes(path, 3)


def test_intogens_most_mutated_drivers():
    path = real("genesets", "intogen_2020_drivers.tsv.gz")
    total = {}
    text = gzip.decompress(path.read_bytes()).decode()
    for row in csv.DictReader(io.StringIO(text), delimiter="\t"):
        total[row["SYMBOL"]] = total.get(row["SYMBOL"], 0) + float(row["MUTATIONS"])
    got = driver_genes(path, DRIVERS)
    assert len(got) == len(set(got)) == 200 and got[0] == "TP53"
    others = [n for gene, n in total.items() if gene not in got]
    assert min(total[gene] for gene in got) >= max(others)
