"""On which scale a table of expression stands. Authority: the linear table it was made from."""

import re

import numpy as np
import pytest

from lab.cohort.expression import read_expression, save_expression
from lab.cohort.scale import column_of, looks_logged, to_linear, unit_of
from lab.commands.he2rna import main
from lab.exchange.gdc import gdc_files, read_gdc
from lab.files import InputError, load_json
from lab.tests.helpers import read_csv, real
from lab.tests.helpers_he2rna import train, write_cohort

BACK = {"log2": np.exp2, "log10": lambda x: 10.0**x, "ln": np.exp}


def tpm(n=4, genes=2000, zeros=0.4, seed=0):
    """Linear expression with the tail and the zeros of TPM."""
    rng = np.random.default_rng(seed)
    a = rng.lognormal(0.5, 2.5, (n, genes)) * (rng.random((n, genes)) > zeros)
    return 1e6 * a / a.sum(1, keepdims=True)


def linear(a, scale=None):
    a = np.array(a, np.float32)
    names = [[f"{letter}{i}" for i in range(n)] for letter, n in zip("sG", a.shape, strict=True)]
    return to_linear(a, scale, "F", *names)


def z_scores(a):
    y = np.log2(1 + a)
    return (y - y.mean(0)) / (y.std(0) + 1e-9)


PANEL = np.random.default_rng(1).lognormal(1, 0.6, (12, 10))  # linear, of ten weak genes


@pytest.mark.parametrize(
    "a",
    [
        *(tpm(), tpm() / 100, 300 * tpm(), tpm(zeros=0.95)),  # TPM, counts per 10,000, FPKM-UQ
        np.round(tpm() / 50),  # shallow counts
        np.round(PANEL),
        *(np.ones((2, 2)), np.zeros((3, 4)), np.full((4, 1), 900.5)),
        np.vstack([tpm(), np.zeros(2000)]),
        np.minimum(tpm(), 6e4).astype(np.float16),
        100 * PANEL,
    ],
)
def test_linear_tables_are_taken_as_they_are(a):
    assert np.array_equal(linear(a), np.asarray(a, np.float32))


@pytest.mark.parametrize("base", ["log2", "log10", "ln"])
@pytest.mark.parametrize("added", [1, 0.001, 0.1, 0])
def test_logarithms_are_refused_and_made_linear_by_their_scale(base, added):
    a = tpm()
    with np.errstate(divide="ignore"):
        y = (np.log(a + added) / np.log(BACK[base](1))).astype(np.float32)
    with pytest.raises(InputError, match="--scale log2, log10 or ln"):
        linear(y)
    scale = base if added == 1 else f"{base}+{added}"
    got = linear(y, scale)
    assert np.allclose(got, a, rtol=1e-4) and np.array_equal(got == 0, a == 0)
    if 0 < added < 1:  # the mend is in the message
        with pytest.raises(InputError, match=f"nothing by --scale .*{re.escape(scale)}"):
            linear(y)


def test_rounded_logarithms_have_zeros_where_they_had_them():
    """Hubs round to four digits, float16 keeps three."""
    a = tpm()
    for y in (np.log2(a + 0.001).round(4), np.log2(a + 0.001).astype(np.float16)):
        got = linear(y, "log2+0.001")
        assert np.array_equal(got == 0, a == 0) and np.allclose(got, a, rtol=0.02, atol=1e-5)


@pytest.mark.parametrize(
    "a, words",
    [
        (np.log2(1 + tpm()), "nothing in it is above"),
        (np.log1p(tpm() / 100), "nothing in it is above"),  # as of single cells
        (np.log2(30 + tpm()), "nothing in it is above"),  # as of a variance-stabilising one
        (PANEL, "such as a panel of weak genes, --scale linear"),
        (
            np.c_[np.log2(1 + tpm(genes=6000)), [63, 71, 58, 9e4]],
            "but a few values up to 9e",
        ),  # an age
        (z_scores(tpm()), "z-scores and centred values can't be made linear"),
        (np.vstack([tpm(), np.log2(1 + tpm(1))]), "1 of 5 rows look like log.*s4: nothing above"),
        (np.vstack([tpm(), np.log10(1 + tpm(1))]), "1 of 5 rows look like logarithms"),
    ],
)
def test_other_shapes_are_refused_with_the_mend(a, words):
    with pytest.raises(InputError, match=words):
        linear(a)


@pytest.mark.parametrize("genes", [40, 2000])
def test_some_logged_rows_are_told_from_a_weak_sample(genes):
    """Samples that differ by biology; one in which all is weak is as linear as the others."""
    rng = np.random.default_rng(genes)
    a = rng.lognormal(4, 2, genes) * rng.lognormal(0, 0.7, (12, genes))
    a[3] *= 30 / a[3].max()
    assert not looks_logged(a)[0].any()
    for log in (np.log2, np.log10, np.log):
        b = a.copy()
        b[[2, 5]] = log(1 + b[[2, 5]])
        assert np.flatnonzero(looks_logged(b)[0]).tolist() == [2, 5]


def test_a_scale_that_the_table_cannot_have_is_refused():
    for a, scale in (
        (tpm(), "log2"),
        (np.log2(1 + 1e4 * tpm()), "log10"),
        (np.log2(0.001 + tpm()), "log2"),
        (z_scores(tpm()), "linear"),
    ):
        with pytest.raises(InputError, match=r"is --scale|linear expression is >= 0"):
            linear(a, scale)
    assert np.array_equal(linear(PANEL, "linear"), PANEL.astype(np.float32))


def test_real_expression_is_linear_and_its_logarithms_are_not():
    paths = list(gdc_files(real("gdc")).values())[:3]
    a = np.array([read_gdc(path)[1]["fpkm_uq_unstranded"] for path in paths]).astype(np.float32)
    assert not looks_logged(a)[0].any() and not looks_logged(a / 19029)[0].any()
    assert looks_logged(np.log2(1 + a))[0].all() and looks_logged(np.log10(1 + a))[0].all()
    assert looks_logged(np.vstack([a[:2], np.log2(1 + a[2:])]))[0].tolist() == [False, False, True]


def test_units_name_columns():
    units = ("FPKM-UQ", "tpm", "fpkm_uq", "TMM CPM", "log-free counts/µg")
    assert [unit_of(u) for u in units] == [*("FPKM-UQ", "TPM", "FPKM-UQ"), *units[3:]]
    assert [column_of(u) for u in units[:4]] == ["fpkm_uq", "tpm", "fpkm_uq", "tmm_cpm"]
    for text in ("%", "", "1", "x" * 31):
        with pytest.raises(InputError, match="--unit"):
            unit_of(text)


def test_a_run_on_logarithms_is_that_on_the_linear_table(tmp_path, capsys):
    """Up to the text's rounding; its unit is in config.json, report and the header of predict."""
    words = ["--epochs", "1", "--null-models", "1"]
    tables = []
    for home, scale in (("plain", None), ("logs", "log2")):
        write_cohort(tmp_path / home, np.random.default_rng(0), patients=9)
        key, ids, genes, a = read_expression(tmp_path / home)
        if scale:
            save_expression(tmp_path / home / "expression.csv", key, ids, genes, np.log2(1 + a))
            with pytest.raises(InputError, match=r"expression.csv: nothing in it is above"):
                train(tmp_path / home, *words)
            words += ["--scale", scale, "--unit", "tpm"]
        assert train(tmp_path / home, *words) == 0
        run = tmp_path / home / "runs" / "he2rna"
        assert main(["predict", str(run), "s00_0", "--features", str(tmp_path / home / "h5")]) == 0
        tables.append(read_csv(run / "predict" / "s00_0.csv"))
    plain, logs = tables
    assert list(plain[0]) == ["gene", "log10_1p_fpkm_uq", "fpkm_uq"]
    assert list(logs[0]) == ["gene", "log10_1p_tpm", "tpm"]
    values = [[float(row["fpkm_uq"]) for row in plain], [float(row["tpm"]) for row in logs]]
    assert np.allclose(*values, rtol=1e-3)
    config = load_json(run / "config.json")
    assert (config["scale"], config["unit"]) == ("log2", "TPM")
    assert "Expression in TPM; the table held log2." in (run / "report.md").read_text()
