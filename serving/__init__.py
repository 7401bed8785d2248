"""Deployable -> answers: an HTTP server for exported models. Imports no torch."""
