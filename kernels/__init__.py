"""Triton kernels, one file an op, and helpers. Imported by the first call that needs one; knows nothing of the ops."""
