"""What training on a CPU frees is kept for the next step."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import numpy as np
from vadapter.base.host_memory import keep_freed_memory

keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(SIZE, np.uint8)[::4096] = 1  # touches every page, and is freed
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
@pytest.mark.parametrize("gib", [0.1, 2.2])  # an int of malloc's settings ends at 2 GiB
def test_a_freed_block_is_used_again_without_page_faults(gib):
    code = FAULTS.replace("SIZE", str(int(gib * 2**30)))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100  # of 26,000 and 580,000 pages
