from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from cbn_deploy.training.interrupts import deferred_interrupt


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.05)  # time for a signal that is not deferred to be raised here


def test_the_block_is_finished_before_the_interrupt():
    done = []
    handler = signal.getsignal(signal.SIGINT)

    def work():
        with deferred_interrupt():
            interrupt()
            done.append("first")
            interrupt()
            done.append("second")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["first", "second"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_error_in_the_block_is_not_hidden():
    def work():
        with deferred_interrupt():
            interrupt()
            raise LookupError

    with pytest.raises(LookupError):
        work()


def test_without_interrupt_nothing_happens_in_any_thread():
    done = []

    def work():
        with deferred_interrupt():
            done.append(threading.current_thread())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    work()
    assert len(done) == 2
