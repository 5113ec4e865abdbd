"""Experiments: one file each, run with ``python -m experiments.NAME``; results stand in ``results/`` as JSON."""
