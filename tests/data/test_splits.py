"""What is held out of files."""

import numpy as np
import pytest

from vadapter.data.reading.splits import Splits


class Numbers:
    """Records that are their own numbers, read in blocks of ten."""

    left_out = 0

    def __init__(self, total):
        self.total = total

    def __len__(self):
        return self.total

    def blocks(self):
        return np.full(self.total // 10, 10)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "a").write_text("content")
    return str(tmp_path / "a")


def all_of(splits, split):
    return splits.find(split, np.arange(splits.count(split)))[1].tolist()


@pytest.mark.parametrize("share, held", [(0.001, 1), (0.05, 10), (0.5, 100), (1.0, 199)])
def test_every_record_is_in_one_split_and_the_held_out_come_from_all_over(file, share, held):
    splits = Splits(file, "", lambda given: Numbers(200), share)
    kept, out = all_of(splits, "train"), all_of(splits, "validation")
    assert sorted(kept + out) == list(range(200)) and len(out) == held
    assert kept == sorted(kept) and out == all_of(Splits(file, "", lambda given: Numbers(200), share), "validation")
    if held == 10:
        assert [i // 20 for i in out] == list(range(10)) and len({i % 20 for i in out}) > 3
    for split, records in (("train", kept), ("validation", out)):
        assert splits.blocks(split).tolist() == np.unique(np.asarray(records) // 10, return_counts=True)[1].tolist()


def test_what_is_held_out_belongs_to_the_fingerprint(file):
    tenth, half, none = (Splits(file, "", lambda given: Numbers(200), share) for share in (0.1, 0.5, 0.0))
    assert len({x.fingerprint("train") for x in (tenth, half, none)}) == 3
    assert tenth.fingerprint("train") != tenth.fingerprint("validation")
    assert none.names == ("train",)


def test_one_record_is_trained_on(file):
    splits = Splits(file, "", lambda given: Numbers(1), 0.5)
    assert splits.names == ("train",) and all_of(splits, "train") == [0]
