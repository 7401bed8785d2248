"""The other usual FastAPI handler: not async, so that each request has a thread of its own."""

import uvicorn
from common import PORT, Classifier
from fastapi import FastAPI, UploadFile

app = FastAPI()
classifier = Classifier()


@app.post("/classify")
def classify(image: UploadFile) -> dict[str, object]:
    """Classify one image."""
    pixels = classifier.decode(image.file.read())
    return classifier.ranking(classifier.logits(pixels[None])[0])


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
