"""Several processes that share one port: ``cbn-serve --workers N``.

The parent (:mod:`serving.workers.supervisor`) listens, loads no model, and hands every connection to the worker that
has the fewest; the workers (:mod:`serving.workers.worker`) are whole servers but for the listening.
"""
