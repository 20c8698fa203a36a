import numpy as np
import pytest

from vadapter.models.masks import Visibility

SEGMENTS = np.array([[1, 1, 1, 2, 2, 0]])
POSITIONS = np.array([[0, 1, 2, 0, 1, 0]])

GLOBAL = """
#.....
##....
###...
...#..
...##.
......
"""
LOCAL = """
#.....
##....
.##...
...#..
...##.
......
"""
BIDIRECTIONAL = """
###...
###...
###...
...##.
...##.
......
"""


@pytest.mark.parametrize(
    ("options", "drawing"),
    [({}, GLOBAL), ({"window": 2}, LOCAL), ({"causal": False}, BIDIRECTIONAL)],
)
def test_mask_of_a_packed_row(options, drawing):
    mask = Visibility(POSITIONS, POSITIONS, SEGMENTS, SEGMENTS, **options).mask()
    drawn = ["".join("#" if x else "." for x in row) for row in np.asarray(mask)[0, 0]]
    assert drawn == drawing.split()
