"""`data.train` and `data.val` are one set, or a mapping of named sets."""

import pytest

from accel_restore.config.keys import is_key
from accel_restore.config.load import config_from
from accel_restore.config.stored import with_new_keys
from accel_restore.errors import UserError


def test_sets_may_have_names():
    tree = {"data": {"train": {"a": {"gt": "x", "share": 0.7}, "b-2": {"input": "y", "gt": "z"}}, "val": {"gt": "q"}}}
    data = config_from(tree, ["data.train.a.share=0.5", "data.val.crop_border=2"]).data
    assert {name: (one.gt, one.share) for name, one in data.train_sets.items()} == {"a": ("x", 0.5), "b-2": ("z", None)}
    assert data.val_sets[""].crop_border == 2
    assert config_from({"data": {"train": {"gt": "x"}}}).data.val_sets == {}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"gtt": "x"}, r"data\.train\.gtt: unknown key; did you mean 'data\.train\.gt'"),
        ({"a": {"gtt": "x"}}, r"data\.train\.a\.gtt: unknown key; did you mean 'data\.train\.a\.gt'"),
        ({"a": {"gt": "x"}, "gt": "x"}, r"data\.train\.a: unknown key"),
        ({"a": {"gt": "x"}, "b": None}, r"data\.train\.b: must be a section"),
        ({"a": {"input": "x"}}, r"data\.train\.a: 'gt' is missing"),
        ({"a b": {"gt": "x"}}, r"data\.train: the name of a set consists of letters"),
        ({"gt": {"gt": "x"}, "a": {"gt": "x"}}, r"data\.train: 'gt' is a key of a set, so .*; rename it"),
        ({"share": {"gt": "x"}}, r"data\.train: 'share' is a key of a set"),
        ({"set5": "/x"}, r"data\.train\.set5: a set is a section; write {set5: {gt: /x}}"),
        (
            {"a": ["x", "y"], "b": "z"},
            r"data\.train\.a: a set .*\n.*data\.train\.b: a set is a section; write {b: {gt: z}}",
        ),
        ({5: "x"}, r"data\.train\.5: a set is a section"),
        ({"dataroot_gt": "x"}, r"data\.train\.dataroot_gt: unknown key; BasicSR's dataroot_gt corresponds to gt"),
        ({"a-b": {"gt": "x"}, "a_b": {"gt": "x"}}, r"data\.train: 'a-b' and 'a_b' .* W&B, .*; rename one of them"),
        ({"a": {"gt": "x", "share": 2}}, r"data\.train\.a\.share: .*not 2"),
    ],
)
def test_mistakes_in_named_sets_are_reported_with_their_keys(train, message):
    with pytest.raises(UserError, match=message):
        config_from({"data": {"train": train}})


def test_mistakes_in_the_names_of_validation_sets_are_reported_too():
    for val, message in (
        ({"set5": "/x"}, r"data\.val\.set5: a set is a section; write {set5: {gt: /x}}"),
        ({"tile": {"gt": "x"}}, r"data\.val: 'tile' is a key of a set"),
        ({"a-b": {"gt": "x"}, "a_b": {"gt": "x"}}, r"data\.val: 'a-b' and 'a_b' .*; rename one of them"),
    ):
        with pytest.raises(UserError, match=message):
            config_from({"data": {"train": {"gt": "x"}, "val": val}})


def test_keys_of_named_sets_are_keys():
    for key in ("data.train.gt", "data.train.div2k.share", "data.val.set5.crop_border", "data.train.a.degradation.0.x"):
        assert is_key(key), key
    for key in ("data.train.div2k.shar", "data.train.a.b.share", "data.val.set5.share"):
        assert not is_key(key), key


def test_a_stored_configuration_gets_the_new_keys_of_its_sets():
    for train in ({"gt": "x"}, {"a": {"gt": "x"}}):
        filled = with_new_keys({"data": {"train": train}})["data"]["train"]
        assert {"gt": "x", "share": None}.items() <= (filled.get("a") or filled).items()
        assert filled.keys() >= {"a"} or "gt" in filled


def sets(*shares: float | None) -> dict:
    return {f"s{number}": {"gt": "x", "share": share} for number, share in enumerate(shares)}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (sets(0.7, 0.31), r"data\.train: the shares add up to 1\.01; lower them to 1 together"),
        (sets(0.7, 0.4, None), r"data\.train: the shares add up to 1\.1; lower"),
        (
            sets(0.5, None, 0.5, None),
            r"data\.train: the shares add up to 1, which leaves nothing for s1, s3; lower them",
        ),
        (sets(1, None), r"data\.train: the shares add up to 1, which leaves nothing for s1"),
        (sets(0.5, 0.3), r"data\.train: the shares add up to 0\.8; raise them to 1, or leave one out"),
        ({"gt": "x", "share": 0.5}, r"data\.train: the shares add up to 0\.5; raise them"),
    ],
)
def test_shares_that_do_not_fit_are_refused(train, message):
    with pytest.raises(UserError, match=message):
        config_from({"data": {"train": train}})


@pytest.mark.parametrize(
    "train", [sets(0.7, 0.3), sets(0.1, 0.2, 0.7), sets(0.33, 0.33, 0.33), sets(0.99, None), sets(1), {"gt": "x"}]
)
def test_shares_that_add_up_to_one_or_leave_a_rest_are_accepted(train):
    assert config_from({"data": {"train": train}}).data.train_sets


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ({"gt": "x", "synthetic_share": 0.5}, r"data\.train\.a\.synthetic_share: needs `input`"),
        (
            {"gt": "x", "input": "y", "degradation": [{"name": "quantize"}]},
            r"data\.train\.a\.degradation: has no effect",
        ),
        ({"gt": "x", "input": "y", "synthetic_share": 1}, r"data\.train\.a\.synthetic_share: "),
    ],
)
def test_keys_of_a_training_set_that_cannot_have_an_effect_are_refused(one, message):
    with pytest.raises(UserError, match=message):
        config_from({"data": {"train": {"a": one}}})
    both = {"gt": "x", "input": "y", "synthetic_share": 0.5, "degradation": [{"name": "quantize"}]}
    data = config_from({"data": {"train": {"a": both, "b": {"gt": "x"}}}}).data
    assert [step.name for step in data.degradation_of(data.train_sets["a"])] == ["quantize"]
