"""lab.tests.test_samples"""

import pytest

from lab.cohort.samples import join, select
from lab.files import InputError


def test_join_by_slide_or_sample():
    samples = [
        dict(slide=s, sample=m, patient="p", project="X")
        for s, m in (("a1", "A"), ("a2", "A"), ("b1", "B"), ("c1", "C"))
    ]
    kept, rows, left = join(samples, "sample", ["B", "A", "D"])
    assert [s["slide"] for s in kept] == ["a1", "a2", "b1"] and rows.tolist() == [1, 1, 0]
    assert list(left.values()) == [["c1"], ["D"]]
    assert join(samples, "", ["A"])[1].tolist() == [0, 0] and join(samples, "slide", ["b1"])[
        1
    ].tolist() == [0]
    with pytest.raises(InputError, match="no column sample"):
        join([dict(slide="a", patient="p", project="X")], "sample", ["a"])
    with pytest.raises(InputError, match="are genes the rows"):
        join(samples, "slide", ["TP53"])


def test_a_sample_of_two_patients_would_stand_on_both_sides_of_a_fold():
    samples = [
        dict(slide="a", sample="A", patient="p", project="X"),
        dict(slide="b", sample="A", patient="q", project="X"),
    ]
    with pytest.raises(InputError, match="sample A is of two patients, p and q"):
        join(samples, "sample", ["A"])


def test_primary_tumours_and_projects_are_selected():
    samples = [
        dict(slide=str(i), project=p, sample_type=t)
        for i, (p, t) in enumerate(
            [
                ("TCGA-LUAD", "Primary Tumor"),
                ("TCGA-LUSC", "Solid Tissue Normal"),
                ("TCGA-LUSC", "Primary Tumor"),
                ("TCGA-KIRC", "Primary Tumor"),
            ]
        )
    ]
    pick = lambda types, project: [s["slide"] for s in select(samples, types, project)[0]]
    assert (
        pick(None, None) == ["0", "2", "3"]
        and pick("all", "LUNG") == ["0", "1", "2"]
        and pick("solid tissue normal", None) == ["1"]
    )
    assert pick(None, "TCGA-KIRC") == pick(None, "KIRC") == ["3"]
    for types, project, words in (
        (None, "STAD", "samples.csv has TCGA-KIRC"),
        ("Metastatic", None, "samples.csv has Primary Tumor"),
        (None, "LUAD,LUADD", "LUADD: samples.csv"),
        ("Primary Tumor,Metastatic", None, "samples.csv has Primary"),
    ):
        with pytest.raises(InputError, match=words):
            select(samples, types, project)
