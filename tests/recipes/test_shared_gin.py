"""vadapter's gin in a process whose gin another package configures, as t5x does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER = """
import gin
from vadapter.recipes import experiments, gin_front
experiments.register()
gin_front.share()
settings = ["MODEL_DIR = 'there'", "DATA_DIR = 'x'"]
gin.parse_config_files_and_bindings(["own.gin", "experiments/scenes_tiny.gin"], settings)
print(gin.config_str())
print("bound:", gin_front.bound("eval_limit"), gin_front.bound("nothing"))
"""
OWN = """
from __gin__ import dynamic_registration
from vadapter.data.order import config as own
own.LoaderConfig.seed = 7
"""


def test_files_with_dynamic_registration_and_shipped_ones_go_together(tmp_path):
    (tmp_path / "own.gin").write_text(OWN)
    (tmp_path / "data").mkdir()  # what gin's reader of Python resources would look into for data/scenes.gin
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run([sys.executable, "-c", LAUNCHER], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "from vadapter.data.order import config" in done.stdout
    assert "MODEL_DIR = 'there'" in done.stdout
    assert done.stdout.rstrip().endswith("bound: {'val/vadapter.data.order.config.LoaderConfig.eval_limit': 256} {}")
