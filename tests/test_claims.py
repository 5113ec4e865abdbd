"""The rule that decides a claim, on made-up cells; what a claim's source says; what a comparison refuses."""

import importlib
import math
from pathlib import Path

import pytest
import torch

from companion.course import claims
from companion.course.claims import rule, section, sources
from companion.course.claims.rule import Comparison, Measurement


def comparison(expected: str = "lower", **options) -> Comparison:
    """Kind a against kind b; a tenth matters where no limit is given."""
    limits = {"by_more_than", "by_less_than", "within"}
    if not limits & options.keys():
        options["within" if expected == "same" else "by_more_than"] = 0.1
    return Comparison(
        what="a against b",
        candidate=Measurement(number="error", settings={"kind": "a"}),
        baseline=Measurement(number="error", settings={"kind": "b"}),
        expected=expected,
        **options,
    )


def pairs(*errors: tuple[float, float]) -> list[dict]:
    """Cells of kinds a and b by seed; those of b in reverse order, since pairs are made by seed, not by position."""
    cells = [{"kind": "a", "seed": seed, "error": a} for seed, (a, _) in enumerate(errors)]
    return cells + [{"kind": "b", "seed": seed, "error": b} for seed, (_, b) in reversed(list(enumerate(errors)))]


MUCH_LOWER = pairs((0.50, 1.0), (1.04, 2.0), (1.44, 3.0), (2.0, 4.0))  # by half; unpaired, the spread would hide it
LITTLE_LOWER = pairs((0.98, 1.0), (1.94, 2.0), (2.94, 3.0), (3.88, 4.0))
UNCLEAR = pairs((0.5, 1.0), (2.4, 2.0), (1.5, 3.0), (4.4, 4.0))


def test_interval_is_that_of_student():
    """By hand: differences 1, 2, 3, 4 have mean 2.5, s/√n = √(5/3)/2, and t₀.₉₇₅ of 3 degrees of freedom is 3.18245."""
    low, high = rule.interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2
    assert (low, high) == pytest.approx((2.5 - half, 2.5 + half), abs=1e-5)


@pytest.mark.parametrize(
    ("cells", "options", "outcome"),
    [
        (MUCH_LOWER, {}, "holds"),
        (LITTLE_LOWER, {}, "smaller than claimed"),  # clearly lower, by less than matters
        (UNCLEAR, {}, "undecided"),
        (MUCH_LOWER[:2] + MUCH_LOWER[-2:], {}, "undecided"),  # two seeds
        (MUCH_LOWER, {"expected": "higher"}, "the opposite"),
        (MUCH_LOWER, {"by_more_than": 0.4}, "holds"),
        (MUCH_LOWER, {"by_more_than": 0.5}, "undecided"),  # the interval covers the effect size
        (LITTLE_LOWER, {"by_less_than": 0.1}, "holds"),
        (MUCH_LOWER, {"by_less_than": 0.1}, "the opposite"),  # of "little": it is much
        (UNCLEAR, {"by_less_than": 0.1}, "undecided"),
        (MUCH_LOWER, {"expected": "higher", "by_less_than": 0.1}, "holds"),  # lower is not higher at all
        (LITTLE_LOWER, {"expected": "same"}, "holds"),
        (MUCH_LOWER, {"expected": "same"}, "the opposite"),  # "the same" has two sides
        ([{**cell, "error": 1 / cell["error"]} for cell in MUCH_LOWER], {"expected": "same"}, "the opposite"),
        (UNCLEAR, {"expected": "same"}, "undecided"),
        (pairs((0.9, 1.0), (1.8, 2.0), (2.7, 3.0)), {}, "undecided"),  # exactly the effect size
        (pairs((1.01, 1.0), (1.94, 2.0), (3.06, 3.0)), {}, "smaller than claimed"),  # about 0: not the opposite either
        (pairs((1.03, 1.0), (2.05, 2.0), (3.1, 3.0)), {}, "the opposite"),
    ],
)
def test_outcome(cells, options, outcome):
    assert comparison(**options).verdict(cells).outcome == outcome


def test_a_seed_in_which_a_tokenizer_collapsed_is_counted_apart():
    """Inside the interval it would decide alone: a mean of 145 % higher in place of 50 % lower."""
    cells = [{**cell, "perplexity": 9.0} for cell in MUCH_LOWER]
    failed = pairs((5.0, 1.0), (0.5, 1.0))[::2]  # kind a of seed 0, kind b of seed 1
    failed = [{**cell, "seed": 4, "perplexity": 1.5, "error": 9.0} for cell in failed]
    both = [*cells, failed[0], {**failed[1], "kind": "b", "perplexity": 9.0, "error": 1.0}]
    verdict = comparison().verdict(both)
    assert (verdict.outcome, verdict.seeds, verdict.collapsed) == ("holds", 4, 1)
    assert str(verdict) == "−50.0 [−52.6, −47.4] %; collapsed: 1 of 5 seeds"
    as_others = [{**cell, "perplexity": 9.0} for cell in both]
    assert comparison().verdict(as_others).outcome == "undecided"
    elsewhere = [*cells, {"kind": "c", "seed": 0, "error": 9.0, "perplexity": 1.0}]
    assert comparison().verdict(elsewhere).collapsed == 0, "a run that the comparison does not look at"


@pytest.mark.parametrize(
    ("options", "condition"),
    [
        ({"by_more_than": 0.05}, "lower by more than 5 %"),
        ({"by_less_than": 0.1}, "not lower by 10 % or more"),
        ({"expected": "same", "within": 0.2}, "within ±20 %"),
        ({"by_more_than": 0.05, "relative": False}, "lower by more than 0.05"),
        ({"expected": "higher", "by_less_than": 1.0, "relative": False}, "not higher by 1 or more"),
    ],
)
def test_the_condition_in_words(options, condition):
    assert comparison(**options).condition == condition


@pytest.mark.parametrize(
    ("candidate", "baseline", "better"),
    [
        ("distortion", "mse", "lower"),
        ("by_epoch[25%]", "by_epoch[-1]", "lower"),
        ("accuracy", "ssim", "higher"),
        ("perplexity", "perplexity", ""),
        ("distortion", "accuracy", ""),
        ("bits/entropy", "bits/entropy", ""),
    ],
)
def test_which_side_is_better_depends_on_what_is_measured(candidate, baseline, better):
    sides = {"candidate": Measurement(number=candidate), "baseline": Measurement(number=baseline)}
    assert Comparison(what="a", expected="lower", by_more_than=0.1, **sides).better == better


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by_more_than": 0.1, "by_less_than": 0.2}, r"limits: got \['by_more_than', 'by_less_than'\]"),
        ({"by_more_than": None}, "limits: got none, want one of by_more_than, by_less_than, within"),
        ({"within": 0.1}, "expected: got 'lower' with within"),
        ({"expected": "same", "by_more_than": 0.1}, "expected: got 'same' with by_more_than"),
    ],
)
def test_a_comparison_has_one_limit_that_fits(options, message):
    with pytest.raises(ValueError, match=message):
        comparison(**options)


def test_only_the_baseline_has_rivals():
    rivals = Measurement(number="error", rivals=[{"kind": "b"}, {"kind": "c"}])
    alone = Measurement(number="error", settings={"kind": "a"})
    options = {"what": "a against the best", "expected": "lower", "by_more_than": 0.1}
    assert Comparison(candidate=alone, baseline=rivals, **options).measurements == [alone, rivals]
    with pytest.raises(ValueError, match="candidate: got 2 rivals"):
        Comparison(candidate=rivals, baseline=alone, **options)


def test_a_relative_difference_from_zero_is_refused():
    options = {"what": "a", "candidate": Measurement(number="error"), "expected": "higher", "by_more_than": 0.1}
    with pytest.raises(ValueError, match="baseline: got 0"):
        Comparison(baseline=0.0, **options)
    assert Comparison(baseline=0.0, relative=False, **options).differences([{"seed": 0, "error": 2.0}]) == [2.0]


def test_numbers_of_a_cell():
    cell = {"bits": 6.0, "entropy": 4.0, "by_epoch": [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]}
    assert rule.value(cell, "bits") == 6
    assert rule.value(cell, "bits/entropy") == 1.5
    assert rule.value({"bits": 6.0, "entropy": 0.0}, "bits/entropy") == math.inf
    assert rule.interval([0.1, math.inf, 0.1]) == (-math.inf, math.inf)
    assert rule.value(cell, "by_epoch[2]") == 6
    assert rule.value(cell, "by_epoch[-1]") == 1
    assert rule.value(cell, "by_epoch[25%]") == 7
    assert rule.value(cell, "by_epoch[100%]") == 1
    assert rule.value({"by_epoch": [9.0, 8.0, 7.0, 6.0]}, "by_epoch[25%]") == 9
    with pytest.raises(ValueError, match=r"number: got 'by_epoch\[a\]'"):
        rule.value(cell, "by_epoch[a]")


def test_differences_are_paired_by_seed_and_negative_where_lower():
    assert comparison().differences(MUCH_LOWER) == pytest.approx([-0.5, -0.48, -0.52, -0.5])
    higher = comparison("higher", relative=False)
    assert higher.differences(MUCH_LOWER) == pytest.approx([-0.5, -0.96, -1.56, -2.0])
    assert comparison().differences(MUCH_LOWER[1:]) == pytest.approx([-0.48, -0.52, -0.5])  # seed 0 has no pair
    verdict = comparison().verdict(MUCH_LOWER)
    assert (verdict.seeds, verdict.mean) == (4, pytest.approx(-0.5))
    assert verdict.low < -0.5 < verdict.high


def test_a_verdict_as_text():
    assert str(comparison().verdict(MUCH_LOWER)) == "−50.0 [−52.6, −47.4] %"
    assert str(comparison("higher", relative=False).verdict(MUCH_LOWER[:2] + MUCH_LOWER[-2:])) == "−0.73"  # two seeds


def test_the_rival_that_is_best_in_the_other_seeds_counts():
    """Not the luckiest of the seed itself, which would win against its equals."""
    x = {1: (0.0, 5.0, 1.0), 2: (4.0, 2.0, 3.0), 3: (9.0, -9.0, 9.0)}  # by k, of seeds 0, 1, 2; k = 3 is no rival
    cells = [{"k": k, "seed": seed, "x": [0.0, each]} for k, values in x.items() for seed, each in enumerate(values)]
    best = Measurement(number="x[1]", rivals=[{"k": 1}, {"k": 2}])
    assert best.by_seed(cells) == {0: 4.0, 1: 5.0, 2: 1.0}  # means elsewhere: 3 and 2.5, 0.5 and 3.5, 2.5 and 3
    assert best.by_seed(cells, max) == {0: 0.0, 1: 2.0, 2: 3.0}
    assert best.by_seed([cell for cell in cells if cell["seed"] == 0]) == {}, "nothing to choose by"
    mean = Measurement(number="x[-1]").by_seed(cells)
    assert mean == {0: pytest.approx(13 / 3), 1: pytest.approx(-2 / 3), 2: 13 / 3}


def test_the_luckiest_of_equals_does_not_decide():
    """Fifteen rivals as good as the cell itself: the best of each seed is far better, the best of the others is not."""
    g = torch.Generator().manual_seed(0)
    cells = [
        {"k": k, "seed": seed, "error": 1 + 0.2 * torch.rand((), generator=g).item()}
        for seed in range(5)
        for k in range(16)
    ]
    candidate = Measurement(number="error", settings={"k": 0})
    against_the_best = Comparison(
        what="0 against the best",
        candidate=candidate,
        baseline=Measurement(number="error", rivals=[{"k": k} for k in range(1, 16)]),
        expected="lower",
        by_more_than=0.05,
    )
    luckiest = {seed: min(c["error"] for c in cells if c["seed"] == seed and c["k"]) for seed in range(5)}
    assert all(candidate.by_seed(cells)[seed] > luckiest[seed] for seed in range(5))
    verdict = against_the_best.verdict(cells)
    assert verdict.low < 0 < verdict.high


def test_a_claim_is_decided_where_it_is_about_the_images_and_a_seed_has_both_sides():
    everywhere = section.Claim(sentence="A sentence", source=sources.OUR_QUESTION, compare=comparison())
    on_mnist = section.Claim(
        sentence="A sentence", source=sources.OUR_QUESTION, compare=comparison(), only_on=("mnist",)
    )
    assert everywhere.verdict(data="glyphs", cells=MUCH_LOWER) == comparison().verdict(MUCH_LOWER)
    assert on_mnist.verdict(data="mnist", cells=MUCH_LOWER) == comparison().verdict(MUCH_LOWER)
    assert on_mnist.verdict(data="glyphs", cells=MUCH_LOWER) is None
    assert everywhere.verdict(data="glyphs", cells=MUCH_LOWER[:4]) is None, "kind a alone"


def test_a_source_says_whose_words_the_sentence_is():
    zhao = sources.Source(report=sources.ZHAO, section="section 4", changed="asked so since a first run")
    assert str(zhao) == "Zhao, VQ-VAE and Transformer, section 4; asked so since a first run"
    assert str(sources.Source(report=sources.GRADIENT_FLOW)) == "the report on the gradient flow of a VQ-VAE"
    assert str(sources.OUR_QUESTION) == "our question"
    assert str(sources.Source(reason="it is asked")) == "our question: it is asked"
    assert str(sources.Source(changed="added later")) == "our question, added later"
    all_claims = [claim for part in claims.SECTIONS for claim in part.claims]
    reports = {"Zhao", "Ibrahim", "Yesiltepe", "gradient flow", "backbones"}
    assert {claim.source.name for claim in all_claims} == {*reports, ""}
    for claim in all_claims:
        assert claim.quoted.startswith("“") == bool(claim.source.name)
        assert bool(claim.source.name) != str(claim.source).startswith("our question")


def test_every_file_of_a_section_is_on_the_page_once():
    folder = Path(rule.__file__).parent
    names = {path.stem for path in folder.glob("*.py")} - {"__init__", "rule", "section", "sources"}
    in_files = [importlib.import_module(f"companion.course.claims.{name}").SECTION for name in sorted(names)]
    assert len(claims.SECTIONS) == len(in_files)
    assert all(any(part is listed for listed in claims.SECTIONS) for part in in_files)
    assert len({part.title for part in in_files}) == len(in_files)
