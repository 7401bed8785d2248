"""What makes a user's classes unfit to train on: one list for training, which refuses, and for the doctor."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["NONE_TO_HOLD_OUT", "class_problems", "sentence_about", "spelled_twice"]

NONE_TO_HOLD_OUT = "No class has two images, so none can be held out for a test; add images or give a test set."


def class_problems(
    name: str, class_names: Sequence[str], train: Mapping[str, int], test: Mapping[str, int] | None
) -> list[str]:
    """Why these classes cannot be trained on, a sentence each; empty if they can.

    Args:
        name: of the data set.
        class_names: every class of either split.
        train: images of each class to train on, before any are held out.
        test: the same for the test; ``None`` if the user gave no test images.
    """
    no_train = [label for label in class_names if not train.get(label)]
    sentences = [
        "" if len(class_names) > 1 else f"{name} has {len(class_names)} class; a classifier needs at least 2.",
        sentence_about(
            spelled_twice(class_names),
            "class has",
            "classes have",
            "two names that look the same, an accent as one character or as two; put all images of a class into one "
            "folder.",
        ),
        sentence_about(no_train, "class has", "classes have", "no training images; add some or remove the class."),
    ]
    if test is None:
        sentences.append("" if any(count > 1 for count in train.values()) else NONE_TO_HOLD_OUT)
    elif not any(test.values()):
        sentences.append(f"The test set of {name} is empty; add images, or remove it to hold some out of train.")
    return [sentence for sentence in sentences if sentence]


def spelled_twice(names: Sequence[str]) -> list[str]:
    """Names, in their composed form, that are there more than once, in the same or another form of Unicode."""
    return [name for name, count in Counter(unicodedata.normalize("NFC", name) for name in names).items() if count > 1]


def sentence_about(names: list[str], one: str, many: str, rest: str) -> str:
    """ "2 classes have (a, b) no ..." or nothing if there are none; names the first three."""
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {one if len(names) == 1 else many} {rest.rstrip('.')} ({shown})."
