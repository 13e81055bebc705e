"""The demonstrations: a paper end to end on real input, one module a paper with a function `run`."""
