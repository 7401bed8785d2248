"""A FastAPI handler as it is usually written, with onnxruntime alone: decode, run, answer, one image at a time."""

import io
import json
import os

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

app = FastAPI()
session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"])
metadata = session.get_modelmeta().custom_metadata_map
names = json.loads(metadata["cbn.class_names"])
size = json.loads(metadata["cbn.preprocessing"])
mean, std = np.float32(size["mean"]), np.float32(size["std"])


@app.post("/classify")
async def classify(image: UploadFile) -> dict[str, object]:
    """Classify one image."""
    picture = Image.open(io.BytesIO(await image.read())).convert("RGB").resize((size["width"], size["height"]), 2)
    pixels = (np.asarray(picture, dtype=np.float32) / 255 - mean) / std
    (logits,) = session.run(["logits"], {"images": pixels.transpose(2, 0, 1)[None]})
    exponentials = np.exp(logits[0] - logits[0].max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities)[:5]
    ranking = [{"label": names[index], "probability": float(probabilities[index])} for index in best]
    return {"predictions": ranking}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["BENCH_PORT"]), access_log=False, log_level="warning")
