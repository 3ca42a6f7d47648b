"""HistCode's choices: one table, and the options that each of them turns."""

import re

import pytest

import histcode
from lab.audit.choices import switches
from lab.commands.histcode import main
from lab.commands.histcode.audit import UNSEEN
from lab.files import InputError
from lab.histcode.choices import CHOICES, TURNED
from lab.tests.helpers import swap

SHOWN_ONLY = {  # no option of --code, or none that turns another option
    ("diagnose", "stop"),
    ("expression", "stop"),
    ("diagnose", "--colour"),
    ("expression", "--colour"),
    ("pretrain", "--min-area"),
}


def test_histcodes_choices_are_one_table(capsys):
    assert main(["choices"]) == 0
    said = capsys.readouterr().out
    assert "python histcode.py pretrain" in said and max(map(len, said.splitlines())) <= 120
    names = [choice[:2] for choice in CHOICES]
    assert len(names) == len(set(names)) == 26
    assert all(re.fullmatch(r"\[(HistCode|AdCo|ours).*\]", choice.tag) for choice in CHOICES)
    turned = {(command, name) for command in TURNED for name in TURNED[command]}
    assert turned | SHOWN_ONLY == set(names)
    assert all(name in TURNED[command] for command in UNSEEN for name in UNSEEN[command])


@pytest.mark.parametrize(
    "command, known",
    [
        ("pretrain", "tissue, colour, tiles, batch"),
        ("diagnose", "folds, stop, embed"),
        ("expression", "model, epochs, stop"),
        ("audit", "tissue, colour, tiles"),
    ],
)
def test_an_unknown_choice_is_told_with_those_there_are(command, known, capsys):
    with pytest.raises(SystemExit):
        main([command, "x", "--code", "bias"])
    assert f"bias: choose from {known}" in capsys.readouterr().err


@pytest.mark.parametrize("verb, name", [(c, name) for c in TURNED for name in switches(CHOICES, c)])
def test_a_choice_turns_its_options_and_no_other(settled, verb, name):
    own = {**TURNED[verb].get(name, {})}
    if name == "batch":
        own["lr"] = 0.03 * 250 / 256  # in proportion
    usual, turned = settled(verb), settled(verb, "--code", name)
    differ = {k: v for k, v in turned.items() if usual[k] != v and k != "code"}
    assert differ == own and turned["code"] == [name] and (own or name == "stop")


def test_follow_sets_a_whole_side_but_not_what_is_asked_for(settled, capsys):
    usual = settled("pretrain")
    ours = {"lr": 0.03, "in_batch": True, "momentum_encoder": 0.0, "bank_tau": usual["tau"]}
    ours |= {"cosine": False, "symmetric": False, "bank_momentum": 0.9, "bank_decay": 1e-4}
    ours |= {"tiles_per_slide": 256, "colour": None, "code": []}
    assert {name: usual[name] for name in ours} == ours
    code = settled("pretrain", "--follow", "code", "--lr", ".1", "--no-in-batch")
    theirs = {"lr": 0.1, "in_batch": False, "momentum_encoder": 0.999, "bank_tau": 0.02}
    theirs |= {"cosine": True, "tau": 0.12, "bank_lr": 0.3, "batch": 250, "final_lr": 0.0006}
    theirs |= {"bank_size": 318193, "bank_from": "training"}
    turned = "batch batch-from cosine momentum-encoder bank-filled bank-tau bank-lr bank-size"
    theirs |= {"code": turned.split()}
    assert {name: code[name] for name in theirs} == theirs
    assert "--follow code: without lr, for --lr 0.1 is asked for" in capsys.readouterr().out
    for verb, side, names in (
        ("pretrain", "paper", ["colour", "tiles", "in-batch", "bank-keys", "bank-step"]),
        ("expression", "code", ["model", "epochs", "stop", "embed"]),
        ("diagnose", "code", ["embed"]),
        ("diagnose", "paper", []),
    ):
        assert settled(verb, "--follow", side)["code"] == names


@pytest.mark.parametrize("verb", ["diagnose", "expression"])
def test_a_verb_settles_its_choices(monkeypatch, verb):
    """Before it looks for its cohort."""
    seen = []

    def reached(o):
        seen.append(o.follow)
        raise InputError("reached")

    swap(monkeypatch, "lab.histcode.choices", "settle_choices", reached)
    with pytest.raises(InputError, match="reached"):
        main([verb, "nowhere", "--follow", "code"])
    assert seen == ["code"]


@pytest.mark.parametrize(
    "argv, words",
    [
        ("pretrain --code lr --lr .1", "--code lr turns it to: .001; leave --lr 0.1 out"),
        ("pretrain --code in-batch --in-batch", "leave --in-batch out"),
        ("pretrain --code colour --colour none", "leave --colour none out"),
        ("pretrain --code tissue --tissue stain", "leave --tissue stain out"),
        ("pretrain --method simclr --code bank-lr", "--code bank-lr: not with"),
        (
            "diagnose --code folds --no-rotate",
            "each of the ten parts tests in turn; leave --no-rotate out",
        ),
        ("expression --code epochs --epochs 3", "leave --epochs 3 out"),
        ("expression --code model --model linear", "leave --model linear out"),
    ],
)
def test_a_choice_and_an_option_that_gainsay_say_so(settled, argv, words):
    with pytest.raises(InputError, match=words):
        settled(*argv.split())
    assert settled("pretrain", "--code", "lr", "--lr", ".001")["lr"] == 0.001  # they agree


def test_the_encoders_rate_is_in_proportion_to_the_batch(settled):
    """Goyal et al. 2017, arXiv:1706.02677: the linear scaling rule."""
    assert settled("pretrain")["lr"] == histcode.LEARNING_RATE == 0.03
    assert settled("pretrain", "--batch", "64")["lr"] == pytest.approx(0.0075)
    assert settled("pretrain", "--batch", "64", "--code", "lr")["lr"] == 0.001
