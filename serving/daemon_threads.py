"""Calls that may never return, or take long: nobody waits for their threads when the process ends."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

__all__ = ["call_in_daemon", "ending_the_process"]

# In which the threads of an executor that was shut down end, if they are idle; one that takes longer loses nothing.
_IDLE_SECONDS = 0.2

P = ParamSpec("P")
T = TypeVar("T")


def call_in_daemon(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
    """Call ``function`` in a daemon thread of its own.

    The threads of an executor, ``asyncio.to_thread``'s too, are joined when the interpreter ends: one that hangs would
    keep the process. And a signal has to wait while the main thread is in native code, but not while it waits here.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # whoever gives up waiting cannot take the call back

    def call() -> None:
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            future.set_exception(error)

    _Call(target=call, name=function.__name__, daemon=True).start()
    return future


@contextmanager
def ending_the_process() -> Iterator[None]:
    """The process ends with the block, with the exit code that this gives; at once if a call is still under way.

    The interpreter would wait for the threads of an executor, however long the image or the batch that they are busy
    with takes. And native code that runs on while the interpreter and its libraries are taken down under it would abort
    the process.
    """
    code: object = 0
    try:
        yield
    except SystemExit as end:
        code = end.code
    if _calls_are_under_way():
        logging.shutdown()
        os._exit(code if isinstance(code, int) else int(code is not None))
    sys.exit(code)  # type: ignore[arg-type]  # whatever it was given


def _calls_are_under_way() -> bool:
    """Whether there is a call of :func:`call_in_daemon`, or a thread that the interpreter would wait for."""
    others = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    if any(isinstance(thread, _Call) for thread in others):
        return True
    deadline = time.monotonic() + _IDLE_SECONDS
    waited_for = [thread for thread in others if not thread.daemon]
    for thread in waited_for:
        thread.join(max(0.0, deadline - time.monotonic()))
    return any(thread.is_alive() for thread in waited_for)


class _Call(threading.Thread):
    """A thread of :func:`call_in_daemon`."""
