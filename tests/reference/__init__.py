"""Reference implementations and table of tolerances."""
