"""test_all"""

import gzip

import numpy as np
import pytest
import torch

import he2rna
from lab.cohort.expression import read_expression
from lab.tests.helpers import (
    bags,
)


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_top_k_mean_equals_brute_force(shift):
    rng, n_tiles = np.random.default_rng(0), [1, 3, 9, 12]
    scores, mask = bags(rng, n_tiles, 5, pad=1e6)
    scores = scores + shift
    for k in (1, 2, 3, 7, 12, 50):
        got = he2rna.top_k_mean(scores, mask, k).numpy()
        for b, n in enumerate(n_tiles):
            for g in range(5):
                want = sorted(scores[b, :n, g].tolist(), reverse=True)[:k]
                assert got[b, g] == pytest.approx(sum(want) / len(want), rel=1e-5, abs=1e-4)


def test_the_authors_padding_competes():
    """The same three tiles, the authors' way: 0.0 for every k. Authority: that case; a loop over rows."""
    scores, mask = torch.tensor([-1.0, -2, -3])[None, :, None], torch.ones(1, 3, dtype=torch.bool)
    assert [he2rna.padded_top_k_mean(scores, mask, k, 8).item() for k in (1, 2, 3, 8, 99)] == [
        0
    ] * 5
    rng, n_tiles = np.random.default_rng(0), [1, 3, 9, 12]
    scores, mask = bags(rng, n_tiles, 5, pad=1e6)
    for k in (1, 2, 7, 12, 20, 50):
        got = he2rna.padded_top_k_mean(scores, mask, k, 20).numpy()
        for b, n in enumerate(n_tiles):
            for g in range(5):
                rows = sorted([*scores[b, :n, g].tolist(), *[0.0] * (20 - n)], reverse=True)[
                    : min(k, n)
                ]
                assert got[b, g] == pytest.approx(sum(rows) / len(rows), abs=1e-5)


def test_expression_formats_agree_and_genes_without_median_are_dropped(tmp_path):
    rng = np.random.default_rng(0)
    a = np.round(10 ** rng.uniform(0, 5, (9, 40)), 3)
    a[:5, 3] = 0  # median 0
    a[:4, 4] = 0  # median > 0
    genes, ids = [f"G{g}" for g in range(40)], [f"s{i}" for i in range(9)]
    text = "\n".join(
        [
            ",".join(["slide", *genes]),
            *(",".join([i, *map(repr, row.tolist())]) for i, row in zip(ids, a)),
        ]
    )
    for name in ("csv", "gz", "npz", "windows"):
        (tmp_path / name).mkdir()
    (tmp_path / "csv" / "expression.csv").write_text(text)
    (tmp_path / "windows" / "expression.csv").write_bytes(
        ("\ufeff" + text.replace("\n", "\r\n") + "\r\n\r\n").encode()
    )
    (tmp_path / "gz" / "expression.csv.gz").write_bytes(gzip.compress(text.encode()))
    np.savez(
        tmp_path / "npz" / "expression.npz",
        expression=a,
        genes=np.array(genes),
        slide=np.array(ids),
    )
    for name in ("csv", "gz", "npz", "windows"):
        key, got_ids, got_genes, got = read_expression(tmp_path / name)
        assert (
            (key, got_ids, got_genes) == ("slide", ids, genes)
            and np.allclose(got, a, rtol=1e-6)
            and got.dtype == np.float32
        )
    for n in (8, 9):  # even, odd
        assert (
            he2rna.expressed(a[:n]) == (np.median(a[:n], axis=0) > 0)
        ).all() and not he2rna.expressed(a[:n])[3]
    assert np.allclose(he2rna.log_expression(np.array([0, 9, 999.0])), [0, 1, 3])


def test_cancers_are_never_pooled_but_for_the_papers_merges():
    groups = he2rna.cancers(["TCGA-LUAD", "TCGA-LUSC", "TCGA-KIRC", "TCGA-UCEC", "COAD"])
    assert list(groups) == ["LUNG", "COAD", "KIRC", "LUAD", "LUSC", "UCEC"] and groups[
        "LUNG"
    ].tolist() == [True, True, False, False, False]


def test_r_sign_is_the_papers(tmp_path):
    """.64 at n = 44 is the t's first Šidák step over 30,839 genes; .20 at n = 1,046 is not (.143)."""
    for n, want in ((44, 0.637), (1046, 0.143)):
        assert he2rna.r_sign(30839, n) == pytest.approx(want, abs=6e-4)
