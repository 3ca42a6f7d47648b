"""The constants that are the papers' or their authors', as these print them.

A constant with such a tag in a method file must stand here, with its value, typed anew.
"""

import inspect
import re

import pytest

import he2rna
import histcode
import stats
import tiling
from lab.tests.helpers import ROOT

TAG = r"^([A-Z][A-Z0-9_]*) = .*\[(?:HE2RNA|HistCode|AdCo|Chen|DSMIL|Campanella)"
PRINTED = {
    tiling: {
        "TILE_UM": 112,
        "TILE_PX": 224,
        "MAX_TILES": 8000,
        "N_SUPERTILES": 100,
        "MEDIAN_PX": 7,
        "CLOSE_PX": 4,
    },
    stats: {
        "N_LISTS": 10000,
        "BASELINE_RANGE": (0.05, 0.95),
        "AUTHORS_FOLDS": 5,
        "AUTHORS_VALID": 0.1,
    },
    he2rna: {
        "KS_SUPERTILES": (1, 2, 5, 10, 20, 50, 100),
        "KS_TILES": (10, 20, 50, 100, 200, 500, 1000, 2000, 5000),
        "HIDDEN": (1024, 1024),
        "DROPOUT": 0.25,
        "FOLDS": 5,
        "VALID_SHARE": 0.1,
        "EPOCHS": 200,
        "FINE_EPOCHS": 50,
        "PATIENCE": 50,
        "FINE_PATIENCE": 30,
        "BATCH_SLIDES": 16,
        "FINE_BATCH": 4,
        "LEARNING_RATE": 0.0003,
        "MERGED": {
            "LUNG": ("LUAD", "LUSC"),
            "KIDN": ("KICH", "KIRC", "KIRP"),
            "UTER": ("UCS", "UCEC"),
        },
        "ALPHA": 0.05,
        "BEST_TILES": 100,
        "MSI_HIDDEN": (1024, 256),
        "MSI_CLASSIFIER": (256, 128),
        "MSI_EPOCHS": 50,
        "MSI_BATCH": 10,
        "MSI_GENE_BATCH": 32,
        "MSI_RATE": 0.001,
        "MSI_FOLDS": 3,
        "MSI_REPEATS": 10,
        "MSI_SPLITS": 50,
    },
    histcode: {
        "VIEW_PX": 224,
        "CROP_AREA": (0.2, 1),
        "CROP_RATIO": (3 / 4, 4 / 3),
        "CROP_DRAWS": 10,
        "JITTER": (0.4, 0.4, 0.4, 0.1),
        "JITTER_CHANCE": 0.8,
        "GREY_CHANCE": 0.2,
        "BLUR_CHANCE": 0.5,
        "BLUR_SIGMA": (0.1, 2),
        "LUMINANCE": (0.299, 0.587, 0.114),
        "EMBEDDING": 128,
        "TAU": 0.12,
        "BANK_SIZE": 65536,
        "BANK_RATE": 3,
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0001,
        "SIMCLR_TAU": 0.1,
        "LEARNING_RATE": 0.03,
        "BATCH": 256,
        "EPOCHS": 50,
        "ATTENTION": 256,
        "QUERIES": 128,
        "STATE": 128,
        "TOP_TILES": 10,
        "PARTS": 10,
        "HEAD_EPOCHS": 50,
        "HEAD_RATE": 0.0001,
        "HEAD_DECAY": 0.00001,
        "LOG2_FC": 1.5,
        "ENDS": 100,
    },
}
ELSEWHERE = {"SIGNATURES"}  # test_signatures_of_the_paper


@pytest.mark.parametrize("module", PRINTED, ids=lambda module: module.__name__)
def test_printed_constants_are_as_printed(module):
    source = (ROOT / f"{module.__name__}.py").read_text()
    tagged = set(re.findall(TAG, source, re.M)) - ELSEWHERE
    assert tagged == {*PRINTED[module]}
    for name, value in PRINTED[module].items():
        assert getattr(module, name) == value, name


def test_pixels_are_normalised_as_torchvisions_weights_want_them():
    """torchvision.models: resnet50's IMAGENET1K_V1.transforms()."""
    assert tiling.IMAGENET_MEAN == (0.485, 0.456, 0.406)
    assert tiling.IMAGENET_STD == (0.229, 0.224, 0.225)


def test_the_model_spells_its_defaults_as_the_constants():
    """So that the class can be copied alone."""
    given = inspect.signature(he2rna.HE2RNA).parameters
    spelled = {"hidden": he2rna.HIDDEN, "ks": he2rna.KS_SUPERTILES, "dropout": he2rna.DROPOUT}
    assert {name: given[name].default for name in spelled} == spelled
