"""A FastAPI handler as it is usually written: decode, run, answer, one image at a time on the event loop."""

import uvicorn
from common import PORT, Classifier
from fastapi import FastAPI, UploadFile

app = FastAPI()
classifier = Classifier()


@app.post("/classify")
async def classify(image: UploadFile) -> dict[str, object]:
    """Classify one image."""
    pixels = classifier.decode(await image.read())
    return classifier.ranking(classifier.logits(pixels[None])[0])


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
