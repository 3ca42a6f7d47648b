"""HistCode's choices and the options they stand for."""

import pytest

from lab.files import InputError


@pytest.mark.parametrize(
    "argv, words",
    [
        ("pretrain --code lr --lr .1", "--code lr turns it to: .001; leave --lr 0.1 out"),
        ("pretrain --code in-batch --no-in-batch", "leave --no-in-batch out"),
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
