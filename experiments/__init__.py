"""Experiments: one file each, run with ``python -m experiments.NAME``; results stand in ``results/`` as JSON.

``common`` has what all share, ``tokenizer`` what most do with a cell; ``page`` writes the README from the results.
"""
