"""The registry of ops, the generic checks, and the rule for a tolerance: for tests, ``check`` and benchmarks."""
