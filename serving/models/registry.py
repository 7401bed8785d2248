"""The models by name and version: loaded, replaced and taken away while requests go on.

Loading is plain blocking code, one load at a time, in a daemon thread; what it changes is published as one new
immutable mapping. The event loop only ever reads that mapping, so it needs no lock and never sees half a change. A
version that is replaced lives until the last request that got it is done (:func:`serving.models.loading.load_model`). A
load may last for ever, if the file says so: unloading and closing do not wait for it, and what it brings after them is
dropped.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from cbn_deploy.errors import CbnError, ModelFileError, SettingsError
from serving.daemon_threads import call_in_daemon
from serving.errors import ApiError
from serving.inference import InferencePool
from serving.models.files import ModelFile, find_files
from serving.models.loading import OnBatch, load_model
from serving.models.misplaced import MisplacedFiles
from serving.models.served import ServedModel
from serving.models.state import ModelState, Slot
from serving.settings import ServingSettings
from serving.watched_file import Fingerprint

__all__ = ["ModelRegistry"]

Key = tuple[str, int]

# Of an error that is none of ours, for clients.
_REASON_CHARACTERS = 200
_GONE = "Its file is gone; the copy in memory goes on answering."

log = logging.getLogger("serving.models")


class ModelRegistry:
    """The models that are served.

    Args:
        settings: which files, and how they are loaded.
        pool: where inference runs.
        on_batch: called with the model's name after every batch.
        unloaded: models that are left out until they are loaded by name.

    Raises:
        CbnError: a model named in the settings cannot be served; one in the folder of models is only marked so.
    """

    def __init__(
        self,
        settings: ServingSettings,
        pool: InferencePool,
        on_batch: OnBatch,
        unloaded: frozenset[str] = frozenset(),
    ) -> None:
        self._settings, self._pool = settings, pool
        self._on_batch = on_batch
        self._loading = threading.Lock()  # held by a load, however long it takes
        self._changing = threading.RLock()  # held for a moment, to change the following
        self._loads: Counter[tuple[str, str]] = Counter()
        self._slots: Mapping[Key, Slot] = MappingProxyType({})
        self._seen: Mapping[Key, Fingerprint] = {}
        self._misplaced = MisplacedFiles(settings.models, settings.model_repository)
        self._unloaded = unloaded
        self._closed = False
        self._load_all()
        self._required = frozenset(name for name, _ in self._slots)

    def __iter__(self) -> Iterator[ServedModel]:
        """Every version that answers; of each model the newest first."""
        slots = self._slots
        for name in dict.fromkeys(name for name, _ in slots):
            yield from _ready(slots, name)

    def get(self, name: str | None, version: str | None = None) -> ServedModel:
        """The version ``version`` of the model called ``name``; by default the newest one of the only model.

        Raises:
            ApiError: 404, no such model or version, or it was unloaded; 422, no name although there are several; 503,
                nothing answers now.
        """
        slots = self._slots
        names = list(dict.fromkeys(known for known, _ in slots))
        if name is None:
            if len(names) > 1:
                raise ApiError(422, f"model: there are several, name one of {', '.join(names)}.")
            if not names:
                raise self._nothing_answers("There is no model to answer; put one into the folder of models.")
            name = names[0]
        if name not in names:
            raise ApiError(404, f"There is no model {name[:80]!r}; there is {', '.join(names) or 'none'}.")
        ready = _ready(slots, name)
        if not version:
            if not ready:
                if name in self._unloaded:
                    raise ApiError(404, f"{name} was unloaded; POST /v2/repository/models/{name}/load brings it back.")
                raise self._nothing_answers(f"{name} cannot answer now: {_reasons(slots, name)}")
            return ready[0]
        for model in ready:
            if model.version == version:
                return model
        there_is = ", ".join(model.version for model in ready) or "none"
        raise ApiError(404, f"{name} has no version {version[:20]!r} that answers; there is {there_is}.")

    def index(self) -> list[ModelState]:
        """Every version of every model, and what has become of it."""
        return [slot.as_state() for slot in self._slots.values()]

    def loads(self) -> dict[tuple[str, str], int]:
        """How often a file of a model was loaded and how often it was refused: (name, success or failure) -> times."""
        names = {slot.name for slot in self._slots.values()}
        never = {(name, outcome): 0 for name in sorted(names) for outcome in ("success", "failure")}
        return {**never, **self._loads}

    def not_ready(self) -> str:
        """Why requests would not be answered: a model that was there at the start has no version that answers, or there
        is no model at all. Empty: all is well."""
        slots = self._slots
        silent = [name for name in sorted(self._required - self._unloaded) if not _ready(slots, name)]
        if silent:
            return " ".join(f"{name}: {_reasons(slots, name)}" for name in silent)
        return "" if any(slot.model for slot in slots.values()) else "There is no model to answer."

    async def load(self, name: str) -> None:
        """Look at the files of the model called ``name`` now and load them, also such as failed or were unloaded.

        The present version answers until then, and if the new one fails.

        Raises:
            ApiError: 403, not allowed; 404, no such model; 422, its newest file cannot be served; 503, the folder of
                models cannot be read, or another load does not end.
        """
        self._require_control()
        await asyncio.wrap_future(call_in_daemon(self._load_named, name))

    async def unload(self, name: str) -> None:
        """Take the model called ``name`` away until it is loaded by name again; requests that have it finish.

        Raises:
            ApiError: 403, not allowed; 404, no such model.
        """
        self._require_control()
        await asyncio.wrap_future(call_in_daemon(self._unload_named, name))

    def refresh(self) -> None:
        """Look at all files; load what is new or changed and has been the same twice, drop versions out of date.

        Raises:
            OSError: the folder of models cannot be read.
        """
        with self._loading:
            files = self._find()
            self._misplaced.warn()
            settled = {key: file for key, file in files.items() if self._seen.get(key) == file.fingerprint}
            self._seen = {key: file.fingerprint for key, file in files.items()}
            for name in dict.fromkeys(name for name, _ in (*self._slots, *files)):
                if name not in self._unloaded:
                    self._update(name, files, settled)

    def close(self) -> None:
        """Release every model; to be called when no request is left."""
        with self._changing:
            self._closed = True
            self._slots = MappingProxyType({})

    def _load_all(self) -> None:
        """What is there at the start is loaded without waiting for it to settle."""
        try:
            files = self._find()
            self._misplaced.warn()
        except OSError as error:
            raise SettingsError(
                f"The folder of models {self._settings.model_repository} cannot be read "
                f"({error.strerror or error}); choose another --model-repository."
            ) from error
        for key in files:
            if key[0] in self._unloaded:
                self._put(key, _unloaded_slot(key))
        for source in self._settings.models:
            if source.name in self._unloaded:
                continue
            file = files.get((source.name, 1)) or ModelFile(
                name=source.name, version=1, path=source.path, fingerprint=(0, 0, 0)
            )
            self._adopt(file, self._load(file))
        for name in dict.fromkeys(name for name, _ in files):
            if name not in self._unloaded:
                self._update(name, files, files)

    def _load_named(self, name: str) -> None:
        with self._loading_alone():
            files = {key: file for key, file in self._found().items() if key[0] == name}
            if not files:
                raise ApiError(404, f"There is no file of a model {name[:80]!r}.")
            with self._changing:
                self._unloaded -= {name}
            for key in files:
                slot = self._slots.get(key)
                if slot is not None and slot.model is None:
                    self._put(key, dataclasses.replace(slot, tried=None))
            self._update(name, files, files)
            newest = self._slots.get((name, max(version for _, version in files)))
            if newest and newest.reason:
                raise ApiError(422, newest.reason)

    @contextmanager
    def _loading_alone(self) -> Iterator[None]:
        """Hold the right to load, if it can be had in the time of a request.

        Raises:
            ApiError: 503, another load has it.
        """
        if not self._loading.acquire(timeout=self._settings.timeout):
            raise self._nothing_answers("Another model file is still being loaded; try again.")
        try:
            yield
        finally:
            self._loading.release()

    def _unload_named(self, name: str) -> None:
        with self._changing:
            keys = [key for key in self._slots if key[0] == name]
            if not keys:
                raise ApiError(404, f"There is no model {name[:80]!r}.")
            self._unloaded |= {name}
            for key in keys:
                self._put(key, _unloaded_slot(key))

    def _nothing_answers(self, why: str) -> ApiError:
        """Nothing will change before the files are looked at again."""
        return ApiError(503, why, {"Retry-After": str(max(1, math.ceil(self._settings.watch_interval)))})

    def _require_control(self) -> None:
        if not self._settings.allows_model_control:
            raise ApiError(403, "Loading and unloading over HTTP is off; start cbn-serve with --model-control.")

    def _find(self) -> dict[Key, ModelFile]:
        return find_files(self._settings.models, self._settings.model_repository)

    def _found(self) -> dict[Key, ModelFile]:
        try:
            return self._find()
        except OSError as error:
            raise self._nothing_answers(f"The folder of models cannot be read ({error.strerror or error}).") from error

    def _update(self, name: str, files: Mapping[Key, ModelFile], settled: Mapping[Key, ModelFile]) -> None:
        """Bring one model up to date: the newest ``keep_versions`` versions that can be served answer."""
        versions = sorted({version for known, version in (*self._slots, *files) if known == name}, reverse=True)
        answering = 0
        for version in versions:
            key = (name, version)
            if key not in files:
                continue
            if answering < self._settings.keep_versions:
                self._bring_up(key, files[key], settled)
                answering += self._has_model(key)
            else:
                self._drop(key)
        for version in versions:
            if (name, version) not in files:
                self._file_is_gone((name, version), alone=not answering)
                answering += self._has_model((name, version))

    def _bring_up(self, key: Key, file: ModelFile, settled: Mapping[Key, ModelFile]) -> None:
        slot = self._slots.get(key) or Slot(name=file.name, version=file.version)
        if slot.has_tried(file):
            return
        if key not in settled:
            if slot.model is None:
                self._put(key, dataclasses.replace(slot, state="LOADING", reason="Its file is still changing."))
            return
        if slot.model is None:
            self._put(key, dataclasses.replace(slot, state="LOADING", reason="It is being loaded."))
        started = time.perf_counter()
        try:
            model = self._load(file)
        except CbnError as error:
            self._reject(slot, file, str(error))
        else:
            seconds = round(time.perf_counter() - started, 3)
            log.info(
                "model loaded", extra={"fields": {"model": model.name, "version": model.version, "seconds": seconds}}
            )
            self._adopt(file, model)

    def _load(self, file: ModelFile) -> ServedModel:
        """A model that can answer.

        Raises:
            CbnError: the file cannot be served.
        """
        try:  # in its own thread, so that a signal can end the process
            return call_in_daemon(load_model, file, self._settings, self._pool, self._on_batch).result()
        except CbnError:
            raise
        except Exception as error:  # a file that nobody has thought of must not keep the others from being loaded
            fields = {"model": file.name, "version": str(file.version)}
            log.exception("a model file was not expected", extra={"fields": fields})
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_REASON_CHARACTERS]
            raise ModelFileError(f"{file.path} cannot be loaded ({reason}); export it again.") from error

    def _adopt(self, file: ModelFile, model: ServedModel) -> None:
        key = (file.name, file.version)
        self._loads[file.name, "success"] += 1
        self._put(key, Slot(name=file.name, version=file.version, model=model, tried=file.fingerprint, state="READY"))

    def _reject(self, slot: Slot, file: ModelFile, why: str) -> None:
        self._loads[file.name, "failure"] += 1
        fields = {"model": file.name, "version": str(file.version), "reason": why}
        log.error("model rejected", extra={"fields": fields})
        why = file.without_folders(why)
        if slot.model is None:
            rejected = dataclasses.replace(slot, tried=file.fingerprint, state="UNAVAILABLE", reason=why)
        else:
            reason = f"Its file was changed and cannot be served, so what it was before goes on answering: {why}"
            rejected = dataclasses.replace(slot, tried=file.fingerprint, reason=reason)
        self._put((file.name, file.version), rejected)

    def _file_is_gone(self, key: Key, *, alone: bool) -> None:
        """A version whose file is gone makes way for another, but the last one that can answer stays."""
        slot = self._slots.get(key)
        if slot is None or slot.model is None or not alone:
            self._drop(key)
        elif slot.reason != _GONE:
            log.warning("model file gone", extra={"fields": {"model": slot.name, "version": str(slot.version)}})
            # Whatever comes to lie at its path is loaded, even if it has the old fingerprint.
            self._put(key, dataclasses.replace(slot, tried=None, reason=_GONE))

    def _has_model(self, key: Key) -> bool:
        slot = self._slots.get(key)
        return slot is not None and slot.model is not None

    def _drop(self, key: Key) -> None:
        with self._changing:
            self._slots = MappingProxyType({known: slot for known, slot in self._slots.items() if known != key})

    def _put(self, key: Key, slot: Slot) -> None:
        """``slot`` may be what a load brings whose model has been unloaded since, or the registry closed."""
        with self._changing:
            if not self._closed:
                slots = {**self._slots, key: _unloaded_slot(key) if key[0] in self._unloaded else slot}
                self._slots = MappingProxyType(dict(sorted(slots.items())))


def _unloaded_slot(key: Key) -> Slot:
    return Slot(name=key[0], version=key[1], reason="It was unloaded.")


def _ready(slots: Mapping[Key, Slot], name: str) -> list[ServedModel]:
    """The versions of a model that answer, newest first."""
    found = [slot for (known, _), slot in slots.items() if known == name and slot.model is not None]
    return [slot.model for slot in sorted(found, key=lambda slot: -slot.version) if slot.model is not None]


def _reasons(slots: Mapping[Key, Slot], name: str) -> str:
    return (
        " ".join(f"Version {version}: {slot.reason}" for (known, version), slot in slots.items() if known == name)
        or "It has no version."
    )
