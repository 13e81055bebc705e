"""Measuring: time, memory and share of the machine's ceilings, ours against peers. Installed as paperops.benchmarks.

measure, memory   one call: its time, beside others' in turn; its memory
ceilings          one machine: bandwidth and multiply-add rate, and the floor that follows for a call
contestants       one call by each contestant: prepared, judged against float64
peers/            what the ops are compared with, a file a peer
bench             all of that for the registry's bench cases; tables, plots and records are its outputs
records, evidence the JSON files, and what they prove about the sources at hand
"""
