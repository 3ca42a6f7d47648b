"""Maps of genes on slides. Authorities: the checkpoints' models, SciPy, counts in loops."""

import json
import shutil

import h5py
import numpy as np
import pytest
import scipy.stats
import torch
from openslide import OpenSlideError

import tiling
from lab.cohort.tiles import tiles_of
from lab.commands.he2rna import main
from lab.files import InputError
from lab.he2rna.runs import model_of
from lab.tests.helpers import copy_of, read_csv, swap, write_pyramid
from lab.tests.helpers_he2rna import train, write_cohort

FILES = "map.png map.svg gallery.png gallery.svg cells.png cells.svg"
FILES += " tiles.csv tiles.geojson provenance.csv report.md"


def heatmap(run, *argv):
    return main(["heatmap", str(run), *map(str, argv), "--device", "cpu"])


@pytest.fixture(scope="module")
def drawn_map_once(mapped_once, tmp_path_factory):
    """A cohort with a map of two genes of its first slide."""
    cohort = tmp_path_factory.mktemp("map") / "c"
    shutil.copytree(mapped_once, cohort)
    run = cohort / "runs" / "he2rna"
    slide = min(row["slide"] for row in read_csv(run / "folds.csv"))
    assert heatmap(run, slide, "--genes", "CD3D,CD3E") == 0
    return cohort


drawn_cohort = copy_of("drawn_map_once")


@pytest.fixture
def drawn_map(drawn_cohort):
    """A map of two genes: (cohort, run, slide, its folder, its test fold)."""
    run = drawn_cohort / "runs" / "he2rna"
    row = min(read_csv(run / "folds.csv"), key=lambda row: row["slide"])
    slide = row["slide"]
    return drawn_cohort, run, slide, run / "heatmaps" / "CD3D-CD3E" / slide, row["test_fold"]


def test_scores_are_those_of_the_model_that_did_not_learn_from_the_patient(drawn_map):
    cohort, run, slide, folder, fold = drawn_map
    saved = torch.load(run / f"fold{fold}.pt", weights_only=True)
    features = np.load(cohort / "features" / "resnet50-stage3" / f"{slide}.npy")
    every = model_of(saved, "cpu").tile_scores(torch.from_numpy(features).float())
    genes = [saved["genes"].index(gene) for gene in ("CD3D", "CD3E")]
    want = every[:, genes].detach().numpy()
    rows = read_csv(folder / "tiles.csv")
    places = [(int(r["x"]), int(r["y"])) for r in rows]
    assert places == list(map(tuple, tiles_of(cohort, slide)[0]["coords"].tolist()))
    assert np.allclose([[float(r[g]) for g in ("CD3D", "CD3E")] for r in rows], want, atol=1e-4)
    assert np.allclose([float(r["score"]) for r in rows], want.mean(1), atol=1e-4)
    report = (folder / "report.md").read_text()
    assert f"fold {fold}, which did not learn from its patient" in report
    assert "Mean of CD3D, CD3E over the slides" in report
    assert {path.name for path in folder.iterdir()} == set(FILES.split())
    shapes = json.loads((folder / "tiles.geojson").read_text())
    assert len(shapes["features"]) == len(rows)


def test_cells_are_counted_on_each_tile_and_compared(drawn_map):
    cohort, _, slide, folder, _ = drawn_map
    points = read_csv(cohort / "points" / f"{slide}.csv")
    tile = float(tiles_of(cohort, slide)[0]["tile"])
    rows = read_csv(folder / "tiles.csv")

    def counted(row, kind, edge):
        x, y = int(row["x"]), int(row["y"])
        on_tile = 0
        for p in points:
            inside = x <= float(p["x"]) < x + edge and y <= float(p["y"]) < y + edge
            on_tile += inside and kind in (p["cell"], "all cells")
        return on_tile

    for row in rows[:5]:
        for kind in ("all cells", "lymphocyte"):  # a pixel on the edge is one of two tiles'
            low, high = (counted(row, kind, int(tile) + more) for more in (0, 1))
            assert low <= int(row[f"cells: {kind}"]) <= high
    counts = np.array([int(r["cells: lymphocyte"]) for r in rows])
    scores = np.array([float(r["score"]) for r in rows])
    r = scipy.stats.pearsonr(scores, counts)[0]
    line = next(s for s in (folder / "report.md").read_text().splitlines() if "| lymph" in s)
    _, kind, n, said, _, rho, best, of_all, _ = [cell.strip() for cell in line.split("|")]
    assert (kind, n) == ("lymphocyte", f"{counts.sum():,}")
    assert float(said) == pytest.approx(r, abs=2e-3)  # tiles.csv has six digits
    assert float(rho) == pytest.approx(scipy.stats.spearmanr(scores, counts)[0], abs=2e-3)
    order = np.argsort(-scores, kind="stable")
    highest, lowest = order[: len(order) // 2], order[-(len(order) // 2) :]
    assert len(order) < 200 and float(of_all) == np.median(counts)
    assert float(best) == np.median(counts[highest]) != np.median(counts[lowest])


def test_the_map_says_what_it_shows(drawn_map):
    """Genes, where results come from, the cells that the genes mark, colours, strips, scale."""
    _, _, slide, folder, _ = drawn_map
    picture = (folder / "map.svg").read_text()
    for words in (
        f"mean of CD3D, CD3E on {slide}",
        "model of a SIMULATED cohort",
        "lymphocyte (",
        "outline in regions/",
        "no tile: less than 50% tissue",
        "score, log₁₀(1 + FPKM-UQ). Colours go",
        "µm",
    ):
        assert words in picture
    report = (folder / "report.md").read_text()
    assert "First the cells that CD3D, CD3E mark: lymphocyte." in report
    assert report.index("| lymphocyte") < report.index("| all cells")
    assert "**model of a SIMULATED cohort" in report and "Colours go from" in report


def test_the_weights_of_the_tiles_sum_to_the_runs_prediction(drawn_map):
    _, run, slide, folder, _ = drawn_map
    account = read_csv(folder / "provenance.csv")
    weights = [float(r["weight"]) for r in account]
    assert sum(weights) == pytest.approx(1, abs=1e-6)
    prediction = sum(float(r["weight"]) * float(r["score"]) for r in account)
    z = np.load(run / "predictions.npz")
    at = z["slide"].tolist().index(slide), z["genes"].tolist().index("CD3D")
    assert prediction == pytest.approx(z["prediction"][at], abs=1e-5)
    assert f"CD3D: {prediction:.5f}"[:-1] in (folder / "report.md").read_text()
    shared = [float(r["weight: CD3D"]) for r in read_csv(folder / "tiles.csv")]
    assert sum(shared) == pytest.approx(1, abs=1e-4)


def test_several_slides_by_all_models_have_a_summary(drawn_map, capsys):
    _, run, _, _, _ = drawn_map
    slides = sorted(r["slide"] for r in read_csv(run / "folds.csv"))[:3]
    argv = ("--genes", "CD3D", "--all-models", "--cells", "lymphocyt")
    assert heatmap(run, *slides, *argv) == 1
    said = capsys.readouterr()
    assert "models of folds 0, 1, 2" in said.out
    lack = "not found: --cells lymphocyt: no cells of class lymphocyt; it has all cells, "
    assert all(f"{slide}: {lack}" in said.err for slide in slides)
    failed = read_csv(run / "heatmaps" / "CD3D" / "failed.csv")
    assert [row["slide"] for row in failed] == slides
    assert lack[11:] in (run / "heatmaps" / "CD3D" / slides[0] / "report.md").read_text()
    summary = (run / "heatmaps" / "CD3D" / "summary.md").read_text()
    assert all(f"| {slide} |" in summary for slide in slides) and "| median |" in summary


@pytest.fixture
def painted_run(tmp_path):
    """A run on .h5 features whose 8 x 8 tiles lie on a painted slide, and the scores of a map."""
    write_cohort(tmp_path, np.random.default_rng(4), patients=9, tiles=64)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 224
    (tmp_path / "slides").mkdir()
    pink = np.full((1792, 1792, 3), (225, 150, 185), np.uint8)
    for path in (tmp_path / "h5").iterdir():
        with h5py.File(path, "a") as h:
            x = h["features"][:64]
            x[:, :3] += 0.8 * np.sin(grid[:, :1] / 300)  # a pattern on the slide
            del h["coords"], h["features"]
            h["features"], h["coords"] = x, grid.astype(np.int32)
            h["coords"].attrs["patch_size_level0"] = 224
        write_pyramid(tmp_path / "slides" / f"{path.stem}.tif", pink)
    assert train(tmp_path, "--epochs", "30", "--lr", "3e-3") == 0
    run = tmp_path / "runs" / "he2rna"
    assert heatmap(run, "s00_0", "--genes", "G0") == 0
    table = read_csv(run / "heatmaps" / "G0" / "s00_0" / "tiles.csv")
    return tmp_path, run, grid, np.array([float(r["score"]) for r in table])


def write_spots(cohort, slide, grid, score, seed):
    """Spots on the tiles: G0 as the score, G5 noise, T-cells as the score; one spot on no tile."""
    rng = np.random.default_rng(seed)
    lines = ["x,y,G0,G5,T-cells", "9999,9999,1,1,1"]
    for (x, y), s in zip(grid, score, strict=True):
        noise, near = rng.normal(size=2)
        lines.append(f"{x + 100},{y + 7},{10**s - 1:.5f},{10**noise:.4f},{s + near * 0.01}")
    (cohort / "spots").mkdir(exist_ok=True)
    (cohort / "spots" / f"{slide}.csv").write_text("\n".join(lines) + "\n")


def write_outline(cohort, slide, corners, edge=224):
    """Squares around some tiles."""
    squares = []
    for x, y in corners.tolist():
        squares.append([[[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge]]])
    (cohort / "regions").mkdir()
    outline = {"type": "MultiPolygon", "coordinates": squares}
    (cohort / "regions" / f"{slide}.geojson").write_text(json.dumps(outline))


def test_spots_and_outlines_as_truth(painted_run, capsys):
    cohort, run, grid, score = painted_run
    for seed, slide in enumerate(("s00_0", "s03_0")):
        write_spots(cohort, slide, grid, score, seed)
    write_outline(cohort, "s00_0", grid[score > np.median(score)])
    assert heatmap(run, "s00_0", "s03_0", "--genes", "G0") == 0
    folder = run / "heatmaps" / "G0" / "s00_0"
    rows = {r["column"]: r for r in read_csv(folder / "spots.csv")}
    assert float(rows["G0"]["R"]) > 0.999 and float(rows["G0"]["p"]) < 0.05
    assert float(rows["T-cells"]["R"]) > 0.8
    assert float(rows["G5"]["p"]) > 0.01
    report = (folder / "report.md").read_text()
    assert "64 of 65 spots lie on a tile: G0 R 1.000 (p 0.000); 2 genes" in report
    assert next(iter(rows)) == "G0"
    picture = (folder / "map.svg").read_text()
    assert "spots: G0 as measured (" in picture
    assert "AUC of the scores 1.000" in report
    said = capsys.readouterr().out
    assert "; spots: G0 R 1.000 (p 0.000; 64 of 65 on tiles); outline AUC 1.000" in said
    assert "| R of spots |" in said
    assert "| models | slides | spots | found |" in said


@pytest.mark.parametrize(
    "table, words",
    [
        ("a,b\n1,2\n", "no columns x and y"),
        ("x,y,G0\nz,2,1\n", "x, y is no place"),
    ],
)
def test_a_map_that_fails_leaves_the_earlier_one(drawn_map, tmp_path, capsys, table, words):
    cohort, _, slide, _, _ = drawn_map
    shutil.copytree(cohort, tmp_path / "c")
    (tmp_path / "c" / "spots").mkdir()
    (tmp_path / "c" / "spots" / f"{slide}.csv").write_text(table)
    run = tmp_path / "c" / "runs" / "he2rna"
    report = run / "heatmaps" / "CD3D-CD3E" / slide / "report.md"
    before = report.read_bytes()
    assert heatmap(run, slide, "--genes", "CD3D,CD3E") == 1
    assert words in capsys.readouterr().err
    assert report.read_bytes() == before


def test_a_slide_that_breaks_off_costs_its_own_map(drawn_map, monkeypatch, capsys):
    _, run, slide, _, _ = drawn_map
    other = max(r["slide"] for r in read_csv(run / "folds.csv"))
    thumbnail, drawn = tiling.thumbnail, []

    def breaks_off_once(*more):
        drawn.append(more)
        if len(drawn) == 1:
            raise OpenSlideError("TIFFReadDirectory: page 2 is missing")
        return thumbnail(*more)

    swap(monkeypatch, "tiling", "thumbnail", breaks_off_once)
    assert heatmap(run, slide, other, "--genes", "CD3D", "--name", "torn") == 1
    assert f"failed: {slide}: TIFFReadDirectory: page 2 is missing" in capsys.readouterr().err
    assert (run / "heatmaps" / "torn" / other / "map.png").is_file()
    assert not (run / "heatmaps" / "torn" / slide).exists()


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--genes", "CD3"], "no gene 'CD3'; nearest: .*CD3"),
        (["--genes", "CD3D", "--name", "a/b"], "not a path"),
    ],
)
def test_a_mistake_is_one_line(mapped, argv, words):
    slide = min((mapped / "slides").iterdir())
    with pytest.raises(InputError, match=words):
        heatmap(mapped / "runs" / "he2rna", slide, *argv)


def test_the_map_takes_every_tile_where_training_took_a_sample(mapped, tmp_path):
    cohort = tmp_path / "few"
    run = cohort / "runs" / "he2rna"
    shutil.copytree(mapped, cohort, ignore=shutil.ignore_patterns("runs"))
    few = "--max-tiles 3 --encoder resnet50-stage3 --folds 3 --epochs 1 --hidden 8 --device cpu"
    assert main(["train", str(cohort), *few.split()]) == 0
    slide = sorted(r["slide"] for r in read_csv(run / "folds.csv"))[1]
    assert heatmap(run, slide, "--genes", "CD3D") == 0
    every, sample = (tiles_of(c, slide)[0]["coords"] for c in (mapped, cohort))
    assert len(sample) == 3 < len(every)
    assert len(read_csv(run / "heatmaps" / "CD3D" / slide / "tiles.csv")) == len(every)


@pytest.mark.parametrize("verb", ["heatmap", "predict"])
def test_nothing_is_written_of_a_truncated_or_empty_slide(mapped, tmp_path, capsys, verb):
    source = sorted((mapped / "slides").iterdir())[2]
    (tmp_path / "slides").mkdir()
    cut, empty = (tmp_path / "slides" / name for name in ("cut.tif", "empty.tif"))
    cut.write_bytes(source.read_bytes()[: source.stat().st_size // 3])
    long = tmp_path / "slides" / f"{'x' * 230}.tif"  # its name leaves no room for ours
    long.write_bytes(source.read_bytes())
    write_pyramid(empty, np.full((1500, 1500, 3), 243, np.uint8))
    run = mapped / "runs" / "he2rna"
    more = ["--genes", "CD3D", "--name", "bad"] if verb == "heatmap" else []
    assert main([verb, str(run), str(cut), str(long), str(empty), *more, "--device", "cpu"]) == 1
    said = capsys.readouterr().err
    assert "failed: cut" in said
    assert "failed: empty: no 112 µm tile" in said
    assert "can't be the name of a file here (control characters, over 200 bytes" in said
    assert "3 of 3 slides failed" in said
    folder = run / "heatmaps" / "bad" if verb == "heatmap" else run / "predict"
    assert [p.name for p in folder.iterdir() if p.name[:3] in ("cut", "emp", "xxx")] == []
