"""The routes: one file per family of paths."""
