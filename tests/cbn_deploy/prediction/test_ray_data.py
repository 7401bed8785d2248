"""The table that Ray Data makes is the one that cbn-predict makes."""

from __future__ import annotations

import importlib.util
import json

import pytest

from cbn_deploy.prediction import PredictionOptions, predict_images
from tests.onnx_models import write_colour_model
from tests.ray_process import needs_ray, run_ray
from tests.serving.files import BLUE, GREEN, RED

pytestmark = [
    needs_ray,
    pytest.mark.skipif(importlib.util.find_spec("pandas") is None, reason="ray[data] is not installed"),
]

DRIVER = """
import json, logging, sys
import ray, ray.data
from cbn_deploy.prediction import PredictionOptions, predict_dataset

model, folder, temporary = sys.argv[1:]
ray.init(
    num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, _temp_dir=temporary, log_to_driver=False,
    logging_level=logging.ERROR,
)
try:
    ray.data.DataContext.get_current().enable_progress_bars = False
    files = ray.data.read_binary_files(folder, include_paths=True)
    rows = predict_dataset(files, model, PredictionOptions(top_k=2), batch_size=3).take_all()
finally:
    ray.shutdown()
print("FOUND" + json.dumps(rows, default=lambda array: array.tolist()))
"""


def test_ray_data_gives_the_same_rows(tmp_path):
    model = write_colour_model(tmp_path / "colours.onnx")
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, content in enumerate((RED, GREEN, BLUE, b"no image", RED[:100]) * 2):
        (folder / f"{number}.png").write_bytes(content)
    done = run_ray(DRIVER, model, folder)
    assert done.returncode == 0, done.stderr[-4000:]
    rows = json.loads(done.stdout.split("FOUND")[1])

    predict_images(model, folder, tmp_path / "local.jsonl", PredictionOptions(top_k=2), batch_size=3)
    local = [json.loads(line) for line in (tmp_path / "local.jsonl").read_text().splitlines()]
    assert sorted(row["image"] for row in rows) == [f"{folder}/{row['image']}" for row in local]
    by_name = {row["image"].rpartition("/")[2]: {**row, "image": row["image"].rpartition("/")[2]} for row in rows}
    for row in local:
        ours = by_name[row["image"]]
        for number in ("probability", "energy", "top_probabilities"):
            expected, actual = row.pop(number), ours.pop(number)
            assert actual == (None if expected is None else pytest.approx(expected, rel=1e-5))
        assert ours == row
