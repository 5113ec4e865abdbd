"""The page ``experiments/README.md``, written from the committed results: ``python -m experiments.page``.

No number in its tables and figures and no verdict is typed: sentences and effect sizes come from
``companion.course.claims``, numbers and verdicts from ``results/*.json``, settings from the experiments. A test makes
the text again and compares.
"""
