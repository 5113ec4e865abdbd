"""The page of the experiments: its claims, verdicts, commands and pictures are what the committed results give."""

import importlib
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from companion.course import results as reader
from companion.course.claims import SECTIONS
from companion.course.claims.rule import value
from companion.course.claims.section import Picture
from experiments import common
from experiments.page import findings, pictures, runs, text

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "experiments" / "README.md").read_text(encoding="utf-8")
RUNS = runs.read()
DECISIONS = runs.decisions(RUNS)
CLAIMS = [(section, claim) for section in SECTIONS for claim in section.claims]


@pytest.mark.parametrize(
    ("section", "claim"), CLAIMS, ids=[f"{section.experiment}: {claim.compare.what[:50]}" for section, claim in CLAIMS]
)
def test_every_claim_names_cells_and_numbers_that_exist(section, claim):
    cells = importlib.import_module(f"experiments.{section.experiment}").cells(3)
    measured = [cell for run in RUNS if run.experiment == section.experiment for cell in run.cells]
    for measurement in claim.compare.measurements:
        for settings in measurement.all_settings:
            assert {cell["seed"] for cell in cells if settings.items() <= cell.items()} == {0, 1, 2}, settings
            for cell in (cell for cell in measured if settings.items() <= cell.items()):
                assert math.isfinite(value(cell, measurement.number))
    assert claim.compare.effect_size > 0


def test_the_committed_page_is_what_the_committed_results_give():
    """Verdicts among it: each is computed from the JSON here and now."""
    assert text.page() == PAGE, "run `make experiments-report`"
    outcomes = [decision.verdict.outcome for decision in DECISIONS]
    assert outcomes
    for outcome in set(outcomes):
        assert PAGE.count(f"| **{outcome}** |") == outcomes.count(outcome)


def test_ten_findings_each_say_what_their_comparison_came_to():
    assert len(findings.FINDINGS) == 10
    for finding in findings.FINDINGS:
        decision = findings.found(finding, DECISIONS)
        assert "{size}" in finding.sentence
        assert f"{findings.told(finding, decision)} (" in PAGE


@pytest.mark.parametrize(
    "change", [{"outcome": "undecided"}, {"lower": False}, {"data": "no such images"}, {"compared": "d"}]
)
def test_a_finding_that_its_comparison_does_not_bear_out_is_refused(change):
    with pytest.raises(ValueError, match=r"says something else|comparisons on .*, want one"):
        findings.found(replace(findings.FINDINGS[0], **change), DECISIONS)


@pytest.mark.parametrize("decision", DECISIONS, ids=lambda decision: decision.claim.compare.what[:50])
def test_the_command_beside_a_verdict_runs_what_it_needs(decision):
    """And no more settings than that: from those cells alone the verdict is the same."""
    claim, run = decision.claim, decision.run
    command = runs.command(claim, run)
    assert f"`{command}`" in PAGE
    assert command.endswith(" --results runs/again")
    wanted = common.commanded(command, run.module.cells)
    cells = [cell for cell in run.cells if any(some.items() <= cell.items() for some in wanted)]
    assert claim.verdict(data=run.data, cells=cells) == decision.verdict
    needed = [cell for cell in common.commanded(run.document["command"], run.module.cells) if claim.compare.uses(cell)]
    for name in run.settings:
        assert {cell[name] for cell in wanted} == {cell[name] for cell in needed}


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.title)
def test_the_table_of_a_section_has_its_verdicts(section):
    table = reader.claims_table(section.title)
    verdicts = [str(decision.verdict) for decision in DECISIONS if decision.section is section]
    assert [line.split(" | ")[-2].partition(": ")[2] for line in table.splitlines()[2:]] == verdicts


def test_a_table_of_claims_that_a_notebook_shows_is_that_of_today():
    """It is computed again when the notebook is opened; the stored one has the verdicts of today."""
    today = {reader.claims_table(section.title) for section in SECTIONS}
    head = "| claim | compared |"
    for path in (ROOT / "solutions").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                text = "".join(output.get("data", {}).get("text/markdown", ""))
                assert not text.startswith(head) or text in today, f"{path.name}: run `make notebooks`"


def test_a_section_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="section: got 'Depth', want one of The VQ-VAE as reported, "):
        reader.claims_table("Depth")


def test_every_figure_is_there_and_has_an_alt_text():
    figures = re.findall(r"!\[(.*?)\]\((.*?)\)", PAGE)
    folder = ROOT / "experiments" / "figures"
    assert {file for _, file in figures} == {f"figures/{path.name}" for path in folder.iterdir()}
    for alt, file in figures:
        assert len(alt) > 40, file
        assert (ROOT / "experiments" / file).stat().st_size < 150_000


def test_every_picture_that_a_section_can_name_can_be_drawn():
    assert set(get_args(Picture)) == {"dots", *pictures.DRAW}
