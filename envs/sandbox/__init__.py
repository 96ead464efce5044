"""Boxes: where code that we did not write runs, and how strongly each tier of them isolates it."""
