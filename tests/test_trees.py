import pytest

from vadapter.base import trees
from vadapter.base.errors import UserError

TREE = {"encoder": {"kernel": 1, "bias": 2}, "adapter": {"lm": {"kernel": 3}, "queries": 4}}


def test_flatten_sorts_by_path_and_unflatten_undoes_it():
    flat = trees.flatten(TREE)
    assert list(flat.items()) == [
        ("adapter/lm/kernel", 3),
        ("adapter/queries", 4),
        ("encoder/bias", 2),
        ("encoder/kernel", 1),
    ]
    assert trees.unflatten(flat) == TREE


def test_merge_unites_and_refuses_a_path_twice():
    assert trees.merge({"a": {"x": 1}}, {"a": {"y": 2}}, {}) == {"a": {"x": 1, "y": 2}}
    with pytest.raises(ValueError, match="a/x"):
        trees.merge({"a": {"x": 1}}, {"a": {"x": 2}})


def test_nearest_comes_best_first():
    assert trees.nearest("adapter/quries", trees.flatten(TREE), n=1) == ["adapter/queries"]
    assert trees.nearest("x", []) == []


def test_match_takes_the_first_pattern_and_the_whole_path():
    paths = ["adapter/lm/kernel", "adapter/queries", "encoder/kernel"]
    assert trees.match(["adapter/queries", "adapter/.*"], paths) == {"adapter/lm/kernel": 1, "adapter/queries": 0}
    with pytest.raises(UserError, match="matches no parameter"):
        trees.match(["adapter"], paths)  # a prefix is not a match


def test_a_pattern_without_match_names_the_nearest_paths():
    with pytest.raises(UserError, match=r"freeze 'encoder/kernl' .*encoder/kernel"):
        trees.match(["encoder/kernl"], trees.flatten(TREE), what="freeze")


def test_a_bad_regex_is_the_users_error():
    with pytest.raises(UserError, match="not a regular expression"):
        trees.match(["adapter/("], trees.flatten(TREE))


def test_split_gives_two_trees_that_merge_to_the_whole():
    chosen, rest = trees.split(TREE, ["adapter/.*"])
    assert chosen == {"adapter": TREE["adapter"]}
    assert rest == {"encoder": TREE["encoder"]}
    assert trees.merge(chosen, rest) == trees.unflatten(trees.flatten(TREE))
