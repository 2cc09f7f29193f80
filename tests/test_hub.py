import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_torch_hub_loads_a_checkout(tmp_path):
    program = """
import sys, torch
metric = torch.hub.load(sys.argv[1], "afv_distance", source="local", form="local")
print(metric.form, float(metric(*torch.zeros(2, 1, 3, 32, 32) - 0.5)))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, str(ROOT)],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["local", "0.0"]
