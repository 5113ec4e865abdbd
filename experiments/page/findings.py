"""Ten findings in plain sentences, each from one comparison of the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from companion.course.claims.rule import Outcome
from experiments.page.runs import Decision


@dataclass(frozen=True)
class Finding:
    """A sentence, with ``{size}`` for the size of the mean difference, and the comparison that it tells.

    Args:
        name: a few words for the picture.
        sentence: what was found.
        experiment, compared: whose comparison it is, and how ``Comparison.what`` begins.
        data: the set of images.
        lower: whether the sentence says that the first side of the comparison is lower.
        outcome: the verdict that the sentence is right for. With another one, or another sign, no page is written.
    """

    name: str
    sentence: str
    experiment: str
    compared: str
    data: str
    lower: bool
    outcome: Outcome


FINDINGS = (
    Finding(
        "RQ 2 × 128\nagainst VQ 256",
        "“Much better … for the same number of total codebooks”: two residual codebooks of 128 codes lose {size} less "
        "than one of 256. That is less than the fifth that “much” would mean, and they spend 14 bits a position where "
        "the one spends 8.",
        "ibrahim_residual",
        "distortion, RQ 2 × 128 against VQ 256, learned codebooks",
        "mnist",
        True,
        "smaller than claimed",
    ),
    Finding(
        "RQ 2 × 16 against VQ 256\n(8 bits each)",
        "At the same number of bits it is the other way round: two residual codebooks of 16 codes lose {size} more "
        "than one of 256.",
        "ibrahim_residual",
        "distortion at 8 nominal bits, RQ 2 × 16 against VQ 256, learned codebooks",
        "mnist",
        False,
        "the opposite",
    ),
    Finding(
        "moving average\nagainst gradient",
        "A codebook that is a moving average, with nothing else changed, is not better than one that learns by "
        "gradient: the mean distortion is {size} higher, and the interval leaves no room for a twentieth lower.",
        "ibrahim_residual",
        "distortion, the moving average alone (uniform start, no restarts) against learned",
        "mnist",
        False,
        "smaller than claimed",
    ),
    Finding(
        "decoder four times\nas wide",
        "Width pays: a decoder four times as wide lowers the distortion by {size}.",
        "width",
        "distortion with the decoder four times as wide",
        "mnist",
        True,
        "holds",
    ),
    Finding(
        "temperature 2, k = 8\nwith one `<sos>`",
        "One start for all classes and a temperature of 2 with the 8 likeliest codes lose classes: their effective "
        "number is {size} fewer than ten. With a start for each class none is lost.",
        "prior",
        "classes among the samples (effective number), one `<sos>`, temperature 2 and k = 8",
        "mnist",
        True,
        "holds",
    ),
    Finding(
        "RQ-Transformer against\none long row",
        "The RQ-Transformer is more than a cheaper flattened transformer: with as many layers it needs {size} fewer "
        "bits for the same codes.",
        "rq_transformer",
        "bits per test image, RQ-Transformer against the flattened transformer",
        "mnist",
        True,
        "the opposite",
    ),
    Finding(
        "Bernoulli for grey values",
        "The Bernoulli likelihood on grey images costs: the distortion of the mean image is {size} higher with it than "
        "with a Gaussian.",
        "yesiltepe_likelihood",
        "grey images: distortion of the mean image, Bernoulli against Gaussian",
        "mnist",
        False,
        "the opposite",
    ),
    Finding(
        "samples of a VAE",
        "Samples of a VAE are blurred: their edge energy is {size} lower than that of test images.",
        "vae_beta",
        "edge energy of samples over that of test images",
        "mnist",
        True,
        "holds",
    ),
    Finding(
        "perceptual loss and\ndiscriminator",
        "A perceptual loss and a discriminator make pictures whose features look right: their Fréchet distance is "
        "{size} lower than with squared error alone (which keeps the lower squared error).",
        "sharper_pictures",
        "Fréchet distance, perceptual loss and discriminator against MSE alone",
        "emoji",
        True,
        "holds",
    ),
    Finding(
        "ConvNeXt against ViT\nand Mamba",
        "No backbone wins at this size: the squared error of ConvNeXt is {size} higher than that of the best of ViT "
        "and two Mambas. A clear win would have been a fifth lower.",
        "backbones",
        "MSE, ConvNeXt against the better of ViT and the two Mambas",
        "emoji",
        False,
        "smaller than claimed",
    ),
)


def found(finding: Finding, decisions: Sequence[Decision]) -> Decision:
    """The comparison that a finding tells.

    Raises:
        ValueError: there is not exactly one, or its verdict is another than the sentence was written for.
    """
    of_it = [
        decision
        for decision in decisions
        if decision.section.experiment == finding.experiment
        and decision.run.data == finding.data
        and decision.run.document["profile"] == "quick"
        and decision.claim.compare.what.startswith(finding.compared)
    ]
    if len(of_it) != 1:
        raise ValueError(f"{finding.name!r}: got {len(of_it)} comparisons on {finding.data}, want one")
    verdict = of_it[0].verdict
    if verdict.outcome != finding.outcome or (verdict.mean < 0) != finding.lower:
        raise ValueError(f"{finding.name!r}: got {verdict} ({verdict.outcome}), and its sentence says something else")
    return of_it[0]


def told(finding: Finding, decision: Decision) -> str:
    """The sentence with its size."""
    verdict = decision.verdict
    size = f"{100 * abs(verdict.mean):.0f} %" if verdict.relative else f"{abs(verdict.mean):.1f}"
    return finding.sentence.format(size=size)
