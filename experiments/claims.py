"""What the source reports claim, each as a comparison of cells that share a seed, and the rule that decides it.

The comparisons and their effect sizes were written, and committed, before the experiments ran on real images; where one
was added or asked otherwise later, its source says when. An effect size is what would matter to someone who chooses a
model: a twentieth of the distortion to call one better, a fifth to call it much better, and less than a tenth for
"slightly". A sentence is in quotation marks where a report states it in this sense; where a report asks and does not
answer, tells only what it did, or says nothing of what matters, the sentence is our own and its source says so.
"""

import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.special import stdtrit

BETTER, SLIGHTLY, MUCH = 0.05, 0.10, 0.20
DATA = {  # images in the order shown, the course's own last
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "CIFAR10-jpeg": "CIFAR-10 (JPEG copy)",
    "cifar10": "CIFAR-10",
    "celeba": "CelebA",
    "glyphs": "glyphs",
}
NO_IMAGES = "random vectors"
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Side:
    """A number of the cells that have these settings: their mean for each seed.

    Of several rivals, each of which adds to ``where``, the best counts, for each seed the one that is best on average
    over the *other* seeds: the best of the seed itself would be the luckiest of equals.
    """

    number: str  # a key of the cell, or one of its list: "residual_by_depth[2]"
    where: Mapping[str, Any]
    rivals: Sequence[Mapping[str, Any]] = ()

    def of(self, cells: Sequence[Cell], best: Callable[..., dict[int, float]] = min) -> dict[int, float]:
        """The number by seed, of the seeds that have all the cells; ``best`` is ``min`` or ``max``."""
        several = [_means(cells, self.number, {**self.where, **rival}) for rival in self.rivals or [{}]]
        seeds = [seed for seed in several[0] if all(seed in one for one in several)]
        if len(several) == 1:
            return several[0]
        if len(seeds) < 2:
            return {}

        def elsewhere(one: Mapping[int, float], seed: int) -> float:
            return statistics.fmean(one[other] for other in seeds if other != seed)

        return {seed: best(several, key=lambda one, seed=seed: elsewhere(one, seed))[seed] for seed in seeds}


@dataclass(frozen=True)
class Claim:
    """A sentence of a report and the comparison that decides it.

    For each seed the difference is ``than − this`` (``asks`` "lower") or ``this − than`` ("higher", "same"), over
    ``than`` where ``relative``.
    With ``little`` the claim is that the difference stays below ``effect``: for "same" on both sides of 0.
    """

    row: str  # of the report: the experiment it belongs to
    sentence: str
    source: str
    measure: str  # what is compared, in words, "this" first
    experiment: str
    this: Side
    than: Side | float
    asks: Literal["lower", "higher", "same"]
    effect: float
    relative: bool = True
    little: bool = False
    data: Sequence[str] = ()  # where it can be judged; empty: on all

    def __post_init__(self) -> None:
        assert len(self.this.rivals) < 2, "which is best is asked of the second side"

    @property
    def by(self) -> str:
        """Whose sentence it is, in a word."""
        known = {"Zhao": ZHAO, "Ibrahim": IBRAHIM, "Yesiltepe": YESILTEPE, "gradient flow": FLOW}
        return next((name for name, source in known.items() if self.source.startswith(source)), "")

    @property
    def quoted(self) -> str:
        """The sentence, in quotation marks where it is a report's."""
        return f"“{self.sentence}”" if self.by else self.sentence

    @property
    def compared(self) -> str:
        """What is compared, as a sentence."""
        return self.measure[0].upper() + self.measure[1:] + ("" if self.measure.endswith("?") else ".")

    @property
    def matters(self) -> str:
        """From what size on a difference is as claimed, in words."""
        word = "less than " if self.little else "within ±" if self.asks == "same" else "more than "
        return word + (f"{100 * self.effect:g} %" if self.relative else f"{self.effect:g}")

    def needs(self, cell: Cell) -> bool:
        """Whether the comparison looks at this cell."""
        sides = [side for side in (self.this, self.than) if isinstance(side, Side)]
        wheres = [{**side.where, **rival} for side in sides for rival in side.rivals or [{}]]
        return any(where.items() <= cell.items() for where in wheres)

    def differences(self, cells: Sequence[Cell]) -> list[float]:
        """One for each seed that has both sides, in the order of seeds."""
        this = self.this.of(cells)
        than = (
            self.than.of(cells, max if self.asks == "higher" else min)
            if isinstance(self.than, Side)
            else dict.fromkeys(this, self.than)
        )
        sign = -1 if self.asks == "lower" else 1
        return [
            sign * (this[seed] - than[seed]) / (abs(than[seed]) if self.relative else 1)
            for seed in sorted(this)
            if seed in than
        ]

    def verdict(self, cells: Sequence[Cell]) -> "Verdict":
        """The 95 % interval of the mean difference, and what follows from it."""
        differences = self.differences(cells)
        low, high = interval(differences)
        little = self.little or self.asks == "same"
        lower_bound = -self.effect if self.asks == "same" else -math.inf
        if little:
            holds = lower_bound < low and high < self.effect
            fails = low >= self.effect or high <= lower_bound
        else:
            holds, fails = low > self.effect, high < self.effect
        word: Word = "holds" if holds else "does not hold" if fails else "not decided by this data"
        aside = ""
        if fails and self.asks == "same":
            aside = "higher" if low > 0 else "lower"
        elif fails and not little:
            aside = "the opposite does" if high < -self.effect else "true, but smaller" if low > 0 else ""
        return Verdict(word, tuple(differences), low, high, self.relative, aside)


Word = Literal["holds", "does not hold", "not decided by this data"]


@dataclass(frozen=True)
class Verdict:
    word: Word
    each: tuple[float, ...]  # the difference of each seed
    low: float
    high: float
    relative: bool = True
    aside: str = ""  # in which way a claim does not hold

    @property
    def seeds(self) -> int:
        return len(self.each)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.each) if self.each else math.nan

    @property
    def told(self) -> str:
        """The word, and in which way."""
        return f"{self.word} ({self.aside})" if self.aside else self.word

    def __str__(self) -> str:
        """The mean difference and its interval."""
        between = "" if self.seeds < 3 else f" [{self.number(self.low)}, {self.number(self.high)}]"
        return f"{self.number(self.mean)}{between}{' %' if self.relative else ''}"

    def number(self, x: float) -> str:
        """One of the differences, with its sign; in per cent where they are relative."""
        return (f"{100 * x:+.1f}" if self.relative else f"{x:+.3g}").replace("-", "−")


def images_of(experiment: str, data: str) -> str:
    """The images in words; one experiment takes none."""
    return NO_IMAGES if experiment == "search_cost" else DATA.get(data, data)


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Student's 95 % interval of the mean; of fewer than three seeds, or infinite ones, all: it decides nothing."""
    n = len(differences)
    if n < 3 or not all(map(math.isfinite, differences)):
        return -math.inf, math.inf
    mean, half = statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(n)
    half *= float(stdtrit(n - 1, 0.975))
    return mean - half, mean + half


def _means(cells: Sequence[Cell], number: str, where: Mapping[str, Any]) -> dict[int, float]:
    by_seed: dict[int, list[float]] = {}
    for cell in cells:
        if where.items() <= cell.items():
            by_seed.setdefault(cell["seed"], []).append(value(cell, number))
    return {seed: statistics.fmean(values) for seed, values in by_seed.items()}


def value(cell: Cell, number: str) -> float:
    """``cell["name"]``, of "name[2]" the third entry, of "name[25%]" the last of the first quarter; "a/b" divides."""
    if "/" in number:
        above, below = (value(cell, part) for part in number.split("/"))
        return above / below if below else math.inf  # a codebook of which one code is left has an entropy of 0
    found = re.fullmatch(r"(\w+)(?:\[(-?\d+)(%?)\])?", number)
    assert found, number
    name, index, percent = found.groups()
    if index is None:
        return float(cell[name])
    return float(cell[name][len(cell[name]) * int(index) // 100 - 1 if percent else int(index)])


ZHAO = "Zhao, VQ-VAE and Transformer, "
IBRAHIM = "Ibrahim, Residual Vector Quantization based VAE, "
FLOW = "the report on the gradient flow of a VQ-VAE"
YESILTEPE = "Yesiltepe, Neural Discrete Representation Learning, "
OURS = "our question"

FASTER, SLOWER = {"start": "uniform", "lr": 3e-3}, {"start": "uniform", "lr": 1e-3}
VQ_256 = {"depth": 1, "num_codes": 256}
RQ_128, RQ_16, RQ_3 = {"depth": 2, "num_codes": 128}, {"depth": 2, "num_codes": 16}, {"depth": 3, "num_codes": 256}
LEARNED, EMA, ALONE = {"codebook": "learned"}, {"codebook": "EMA"}, {"codebook": "EMA alone"}
GRID = (64, 128, 256, 512)
PAIRS = [{"num_codes": k, "dim": d} for k in GRID for d in GRID]
SHALLOW = {"encoder_blocks": 0, "decoder_blocks": 0}
NARROW = {"encoder": "narrow", "decoder": "narrow"}


def codes_and_dims(number: str, num_codes: int, dim: int) -> Side:
    return Side(number, {"num_codes": num_codes, "dim": dim})


def residual(number: str, *where: Mapping[str, Any]) -> Side:
    return Side(number, {key: one for some in where for key, one in some.items()})


def grid(number: str, factor: int, **where: Any) -> Side:
    return Side(number, {"factor": factor, "longer": 1, **where})


def prior(number: str, sos: str, kind: str = "transformer") -> Side:
    return Side(number, {"prior": kind, "sos": sos})


def rq(number: str, kind: str, images: str = "all") -> Side:
    return Side(number, {"prior": kind, "images": images})


def length(number: str, *factors: tuple[int, int]) -> Side:
    return Side(number, {}, [{"f_height": h, "f_width": w} for h, w in factors])


def likelihood(number: str, images: str, name: str) -> Side:
    return Side(number, {"images": images, "likelihood": name})


def beta(number: str, images: str, decoder: str, weight: float = 1.0) -> Side:
    return Side(number, {"images": images, "decoder": decoder, "beta": weight})


CLAIMS = (
    # The VQ-VAE of Zhao's report
    Claim(
        "The VQ-VAE as reported",
        "The results demonstrate the capability of VQ-VAE for reconstruction",
        ZHAO + "abstract",
        "1 − distortion (f = 4, K = 128, D = 8): above 0.9?",
        "zhao_vqvae",
        Side("distortion", FASTER),
        1.0,
        "lower",
        0.9,
    ),
    Claim(
        "The VQ-VAE as reported",
        "A learning rate of 0.003 is better than one of 0.001",
        OURS + ": the report trains with 0.003, section 3.4",
        "distortion with a learning rate of 0.003 against 0.001, codes starting uniform",
        "zhao_vqvae",
        Side("distortion", FASTER),
        Side("distortion", SLOWER),
        "lower",
        BETTER,
    ),
    Claim(
        "The VQ-VAE as reported",
        "Codes that start from k-means lose less than codes that start uniform",
        OURS + ": the report does not say how its codes start",
        "distortion from k-means against uniform, learning rate 0.003",
        "zhao_vqvae",
        Side("distortion", {**FASTER, "start": "k-means"}),
        Side("distortion", FASTER),
        "lower",
        BETTER,
    ),
    Claim(
        "The VQ-VAE as reported",
        "With k-means at the start a learning rate of 0.003 is better than one of 0.001",
        OURS + ": start and rate told apart",
        "distortion at 0.003 against 0.001, codes from k-means",
        "zhao_vqvae",
        Side("distortion", {"start": "k-means", "lr": 3e-3}),
        Side("distortion", {"start": "k-means", "lr": 1e-3}),
        "lower",
        BETTER,
    ),
    # K and D
    Claim(
        "K and D",
        "Larger codebooks with length 256 will only slightly improve the performance",
        ZHAO + "section 4",
        "distortion at K = 256 against K = 128, D = 8: less than a tenth lower?",
        "zhao_codes_and_dims",
        codes_and_dims("distortion", 256, 8),
        codes_and_dims("distortion", 128, 8),
        "lower",
        SLIGHTLY,
        little=True,
    ),
    Claim(
        "K and D",
        "Bigger dimensions like 16 tends to make the model use less diverse codes",
        ZHAO + "section 4",
        "perplexity at D = 16 against D = 8, K = 128",
        "zhao_codes_and_dims",
        codes_and_dims("perplexity", 128, 16),
        codes_and_dims("perplexity", 128, 8),
        "lower",
        SLIGHTLY,
    ),
    Claim(
        "K and D",
        "Smaller dimensions like 4 tends to produce blurry reconstructions",
        ZHAO + "section 4",
        "edge energy of the reconstructions over that of the images, D = 4 against D = 8, K = 128",
        "zhao_codes_and_dims",
        codes_and_dims("sharpness", 128, 4),
        codes_and_dims("sharpness", 128, 8),
        "lower",
        BETTER,
    ),
    Claim(
        "K and D",
        "which is caused by the loss of information",
        ZHAO + "section 4",
        "distortion at D = 4 against D = 8, K = 128: higher?",
        "zhao_codes_and_dims",
        codes_and_dims("distortion", 128, 4),
        codes_and_dims("distortion", 128, 8),
        "higher",
        BETTER,
    ),
    Claim(
        "K and D",
        "the corresponding transformer will be harder to train",
        ZHAO + "section 4; asked so since a first run of three seeds, which had compared the bits themselves",
        "bits of a class-conditional prior over those of the codes' shares at each position, K = 256 against K = 128, "
        "D = 8: higher?",
        "zhao_codes_and_dims",
        codes_and_dims("prior_bits/entropy_bits_per_position", 256, 8),
        codes_and_dims("prior_bits/entropy_bits_per_position", 128, 8),
        "higher",
        BETTER,
    ),
    Claim(
        "K and D",
        "A prior needs more bits for the codes of a larger codebook",
        OURS,
        "bits per test image of a class-conditional prior, K = 256 against K = 128, D = 8: higher?",
        "zhao_codes_and_dims",
        codes_and_dims("prior_bits", 256, 8),
        codes_and_dims("prior_bits", 128, 8),
        "higher",
        BETTER,
    ),
    Claim(
        "K and D",
        "the generation result will be less authentic",
        ZHAO + "section 4",
        "share of samples recognised as the class asked for, K = 256 against K = 128, D = 8: two points less?",
        "zhao_codes_and_dims",
        codes_and_dims("recognised", 256, 8),
        codes_and_dims("recognised", 128, 8),
        "lower",
        0.02,
        relative=False,
    ),
    # The grid
    *(
        Claim(
            "K × D on colour images",
            "256-256 was the best",
            FLOW,
            f"distortion of K = D = 256 against the best other cell of the grid, latents {32 // factor}×{32 // factor}",
            "gradient_flow_grid",
            grid("distortion", factor, num_codes=256, dim=256),
            Side(
                "distortion",
                {"factor": factor, "longer": 1},
                [pair for pair in PAIRS if pair != {"num_codes": 256, "dim": 256}],
            ),
            "lower",
            BETTER,
        )
        for factor in (4, 2)
    ),
    Claim(
        "K × D on colour images",
        "The reconstruction loss of 256 codes showed the fastest decrease",
        FLOW,
        "distortion after the first epoch, mean over D: K = 256 against the best other K, latents 8×8",
        "gradient_flow_grid",
        grid("first_epoch", 4, num_codes=256),
        Side("first_epoch", {"factor": 4, "longer": 1}, [{"num_codes": k} for k in GRID if k != 256]),
        "lower",
        BETTER,
    ),
    Claim(
        "K × D on colour images",
        "If ther are two many codes, the shared latents are sparse",
        FLOW,
        "share of the codes in use at K = 512 against K = 64, mean over D, latents 8×8: lower?",
        "gradient_flow_grid",
        grid("usage", 4, num_codes=512),
        grid("usage", 4, num_codes=64),
        "lower",
        MUCH,
    ),
    Claim(
        "K × D on colour images",
        "Few codes overtake many when they are trained longer",
        OURS + ": “What happens if training is done further with small nubmer of latent codes?” is asked in " + FLOW,
        "does K = 64 trained four times as long lose less than K = 256? distortion, D = 256, latents 8×8",
        "gradient_flow_grid",
        Side("distortion", {"factor": 4, "num_codes": 64, "dim": 256, "longer": 4}),
        grid("distortion", 4, num_codes=256, dim=256),
        "lower",
        BETTER,
    ),
    Claim(
        "K × D on colour images",
        "… and when the large codebook is trained as long?",
        OURS,
        "distortion, K = 64 against K = 256, both trained four times as long, D = 256: within a twentieth?",
        "gradient_flow_grid",
        Side("distortion", {"factor": 4, "num_codes": 64, "dim": 256, "longer": 4}),
        Side("distortion", {"factor": 4, "num_codes": 256, "dim": 256, "longer": 4}),
        "same",
        BETTER,
    ),
    Claim(
        "Longer training",
        "Few codes overtake many when they are trained longer",
        OURS + ": “What happens if training is done further with small nubmer of latent codes?” is asked in " + FLOW,
        "does K = 16 after the whole training lose less than K = 256 after a quarter of it? distortion, D = 8",
        "longer_training",
        Side("by_epoch[-1]", {"num_codes": 16}),
        Side("by_epoch[25%]", {"num_codes": 256}),
        "lower",
        BETTER,
    ),
    Claim(
        "Longer training",
        "… and when the large codebook is trained as long?",
        OURS,
        "distortion after the whole training, K = 16 against K = 256, D = 8: within a twentieth?",
        "longer_training",
        Side("by_epoch[-1]", {"num_codes": 16}),
        Side("by_epoch[-1]", {"num_codes": 256}),
        "same",
        BETTER,
    ),
    # The prior: effect sizes as in prior.py and sequence_length.py
    Claim(
        "Prior and sampling",
        "Sampling using the transformer tends to produce only a number of classes",
        ZHAO + "section 3.5",
        "classes among the samples (effective number), one `<sos>`, temperature 2 and k = 8, against the 10 there are: "
        "more than one missing?",
        "prior",
        prior("t2_k8_classes", "one"),
        10.0,
        "lower",
        1.0,
        relative=False,
    ),
    *(
        Claim(
            "Prior and sampling",
            "Numbers like 1 and 7 does not appear",
            ZHAO + "section 3.5",
            f"share of {digit} among the samples, one `<sos>`, temperature 2 and k = 8: below a hundredth?",
            "prior",
            prior(f"t2_k8_shares[{digit}]", "one"),
            0.0,
            "higher",
            0.01,
            relative=False,
            little=True,
            data=("mnist", "glyphs"),
        )
        for digit in (1, 7)
    ),
    Claim(
        "Prior and sampling",
        "generating all samples using the same `<sos>` token works bad",
        ZHAO + "section 3.6; compared so since the glyphs had been run, before MNIST",
        "Fréchet distance of samples at temperature 2 and k = 8, one `<sos>` against class `<sos>`: a fifth higher?",
        "prior",
        prior("t2_k8_frechet", "one"),
        prior("t2_k8_frechet", "class"),
        "higher",
        MUCH,
    ),
    Claim(
        "Prior and sampling",
        "A single `<sos>` loses classes",
        OURS,
        "effective number at temperature 1, one `<sos>` against class `<sos>`: one fewer?",
        "prior",
        prior("t1_classes", "one"),
        prior("t1_classes", "class"),
        "lower",
        1.0,
        relative=False,
    ),
    Claim(
        "Prior and sampling",
        "Temperature 2 with k = 8 loses classes",
        OURS + ": what the report samples with, section 3.3",
        "effective number, one `<sos>`, temperature 2 and k = 8 against temperature 1: one fewer?",
        "prior",
        prior("t2_k8_classes", "one"),
        prior("t1_classes", "one"),
        "lower",
        1.0,
        relative=False,
    ),
    Claim(
        "Prior and sampling",
        "conditional generation solves this problem",
        ZHAO + "section 3.5; compared so since the glyphs had been run, before MNIST",
        "effective number of classes at temperature 2 and k = 8, class `<sos>`, against the 10 there are: less than "
        "half a class missing?",
        "prior",
        prior("t2_k8_classes", "class"),
        10.0,
        "lower",
        0.5,
        relative=False,
        little=True,
    ),
    Claim(
        "Prior and sampling",
        "A transformer predicts codes better than a PixelCNN",
        OURS + ": the report takes the one for the other, section 2.4",
        "bits per test image with class `<sos>`, transformer against PixelCNN of as many weights: a fiftieth lower?",
        "prior",
        prior("bits", "class"),
        prior("bits", "class", "PixelCNN"),
        "lower",
        0.02,
    ),
    Claim(
        "Sequence length",
        "The ideal sequence length for transformer is hw/8",
        ZHAO + "section 4",
        "share of samples recognised, 14 × 7 = 98 codes against the best other grid: two points more?",
        "sequence_length",
        length("accuracy", (2, 4)),
        length("accuracy", (7, 7), (4, 4), (2, 2)),
        "higher",
        0.02,
        relative=False,
    ),
    Claim(
        "Sequence length",
        "The ideal sequence length for transformer is hw/8",
        ZHAO + "section 4",
        "bits per pixel, prior and residual together, 14 × 7 against the best other grid: a hundredth lower?",
        "sequence_length",
        length("bits_per_dimension", (2, 4)),
        length("bits_per_dimension", (7, 7), (4, 4), (2, 2)),
        "lower",
        0.01,
    ),
    Claim(
        "Sequence length",
        "Longer sequence length will make the transformer harder to capture the true distribution",
        ZHAO + "section 4",
        "share of samples recognised, 14 × 14 = 196 codes against 98: two points less?",
        "sequence_length",
        length("accuracy", (2, 2)),
        length("accuracy", (2, 4)),
        "lower",
        0.02,
        relative=False,
    ),
    Claim(
        "Sequence length",
        "shorter sequences will lose too much information of the original image",
        ZHAO + "section 4",
        "distortion, 7 × 7 = 49 codes against 98: a fifth higher?",
        "sequence_length",
        length("distortion", (4, 4)),
        length("distortion", (2, 4)),
        "higher",
        MUCH,
    ),
    # EMA
    Claim(
        "EMA against a learned codebook",
        "EMA performed better for the VQ case",
        IBRAHIM + "figures 11 and 12",
        "distortion, EMA (with k-means and restarts) against learned, VQ 256",
        "ibrahim_residual",
        residual("distortion", VQ_256, EMA),
        residual("distortion", VQ_256, LEARNED),
        "lower",
        BETTER,
    ),
    Claim(
        "EMA against a learned codebook",
        "EMA performed better for the VQ case",
        IBRAHIM + "figures 11 and 12",
        "distortion, the moving average alone (uniform start, no restarts) against learned, VQ 256",
        "ibrahim_residual",
        residual("distortion", VQ_256, ALONE),
        residual("distortion", VQ_256, LEARNED),
        "lower",
        BETTER,
    ),
    Claim(
        "EMA against a learned codebook",
        "The loss of a learned codebook rises in training",
        OURS + ": “EMA helps fix instability problems in VQ-VAE” (" + IBRAHIM + "summary) needs an instability; asked "
        "otherwise since a first run",
        "largest change of the test loss from an epoch to the next, as a share of it, VQ 256: a rise of a twentieth?",
        "ibrahim_residual",
        residual("largest_rise", VQ_256, LEARNED),
        0.0,
        "higher",
        0.05,
        relative=False,
    ),
    Claim(
        "EMA against a learned codebook",
        "for RQ there was not a huge difference in losses",
        IBRAHIM + "results",
        "distortion, EMA against learned, RQ 2 × 128: within a fifth?",
        "ibrahim_residual",
        residual("distortion", RQ_128, EMA),
        residual("distortion", RQ_128, LEARNED),
        "same",
        MUCH,
    ),
    # RQ against VQ
    *(
        Claim(
            "Residual against plain quantisation",
            "RQ VAE performed much better than VQ VAE for the same number of total codebooks",
            IBRAHIM + "figure 8",
            f"distortion, RQ 2 × 128 against VQ 256, {codebook['codebook']} codebooks: a fifth lower?",
            "ibrahim_residual",
            residual("distortion", RQ_128, codebook),
            residual("distortion", VQ_256, codebook),
            "lower",
            MUCH,
        )
        for codebook in (LEARNED, EMA)
    ),
    *(
        Claim(
            "Residual against plain quantisation",
            "… and at the same number of bits?",
            OURS,
            f"distortion at 8 nominal bits, RQ 2 × 16 against VQ 256, {codebook['codebook']} codebooks: lower?",
            "ibrahim_residual",
            residual("distortion", RQ_16, codebook),
            residual("distortion", VQ_256, codebook),
            "lower",
            BETTER,
        )
        for codebook in (LEARNED, EMA)
    ),
    *(
        Claim(
            "Residual against plain quantisation",
            "quantizer is reducing the quantization error in each step",
            IBRAHIM + "figure 9",
            f"mean squared residual after quantiser {depth} against before it, three quantisers",
            "ibrahim_residual",
            residual(f"residual_by_depth[{depth}]", RQ_3),
            residual(f"residual_by_depth[{depth - 1}]", RQ_3),
            "lower",
            BETTER,
        )
        for depth in (1, 2, 3)
    ),
    # RQ-Transformer: effect sizes as in rq_transformer.py
    *(
        Claim(
            "RQ-Transformer",
            sentence,
            source,
            f"{name} against all images and steps, samples recognised as what was asked for: five points less?",
            "rq_transformer",
            rq("accuracy", kind, images),
            rq("accuracy", "rq"),
            "lower",
            0.05,
            relative=False,
        )
        for sentence, source, name, kind, images in (
            (
                "Training on 2,000 images only makes samples worse",
                OURS + ": " + IBRAHIM + "results, trained so",
                "2,000 images",
                "rq",
                "few",
            ),
            (
                "Too little training makes samples worse",
                OURS + ": " + IBRAHIM + "figure 14, “takes a lot of time to train and I had limited resources”",
                "a fifth of the steps",
                "a fifth of the steps",
                "all",
            ),
            (
                "The published package's shifted labels make samples look bad",
                OURS + ": the report used the package and does not suspect it",
                "shifted labels",
                "shifted labels",
                "all",
            ),
        )
    ),
    Claim(
        "RQ-Transformer",
        "The published package draws worse samples than a prior that is told the class",
        OURS,
        "the package, which knows no classes, against ours, which is told them: share of samples that the classifier "
        "is sure of: five points less?",
        "rq_transformer",
        rq("confident", "published package"),
        rq("confident", "rq"),
        "lower",
        0.05,
        relative=False,
    ),
    *(
        Claim(
            "RQ-Transformer",
            "… and where none of them knows the classes, as in the report?",
            OURS + ", added when the glyphs had been run and no real images",
            f"{name} against ours without classes: share of samples that the classifier is sure of: five points less?",
            "rq_transformer",
            rq("confident", kind),
            rq("confident", "rq without class"),
            "lower",
            0.05,
            relative=False,
        )
        for name, kind in (
            ("shifted labels alone", "shifted labels without class"),
            ("the published package", "published package"),
        )
    ),
    Claim(
        "RQ-Transformer",
        "… and beside a transformer over all codes in a row?",
        OURS,
        "bits per test image, RQ-Transformer against the flattened transformer of as many layers: within a fiftieth?",
        "rq_transformer",
        rq("bits", "rq"),
        rq("bits", "flattened"),
        "same",
        0.02,
    ),
    # Encoder and decoder
    *(
        Claim(
            "Encoder and decoder",
            f"A deeper {which} loses less",
            OURS + ": “How the encoder and the decoder affect performance?” is asked in " + FLOW,
            f"distortion, {name} residual blocks against 0 + 0, K = 64, D = 8",
            "depth",
            Side("distortion", {"encoder_blocks": e, "decoder_blocks": d}),
            Side("distortion", SHALLOW),
            "lower",
            BETTER,
        )
        for which, name, e, d in (("encoder", "3 + 0", 3, 0), ("decoder", "0 + 3", 0, 3))
    ),
    *(
        Claim(
            "Encoder and decoder, width",
            f"A wider {which} loses less",
            OURS + ": “How the encoder and the decoder affect performance?” is asked in " + FLOW,
            f"distortion with the {which} four times as wide, against both narrow, K = 64, D = 8",
            "width",
            Side("distortion", {**NARROW, which: "wide"}),
            Side("distortion", NARROW),
            "lower",
            BETTER,
        )
        for which in ("encoder", "decoder")
    ),
    # Likelihood and collapse
    Claim(
        "Likelihood",
        "The mean of a Bernoulli loses less than that of a Gaussian",
        OURS
        + ": “outputing Bernoulli Distribution parameter is a natural choice” for grey images such as MNIST, "
        + YESILTEPE
        + "likelihood",
        "grey images: distortion of the mean image, Bernoulli against Gaussian in bins",
        "yesiltepe_likelihood",
        likelihood("distortion", "grey", "Bernoulli"),
        likelihood("distortion", "grey", "Gaussian in bins"),
        "lower",
        BETTER,
    ),
    Claim(
        "Likelihood",
        "A Bernoulli is the better one for black-and-white images",
        OURS,
        "black-and-white images: bits per pixel, Bernoulli against the logistic mixture",
        "yesiltepe_likelihood",
        likelihood("bits", "binary", "Bernoulli"),
        likelihood("bits", "binary", "logistic mixture, K = 3"),
        "lower",
        BETTER,
    ),
    *(
        Claim(
            "Likelihood",
            "Categorical Distribution or Logistic Mixture Distribution would be natural choices",
            YESILTEPE + "likelihood",
            f"grey images: bits per pixel, {name} against Gaussian in bins",
            "yesiltepe_likelihood",
            likelihood("bits", "grey", name),
            likelihood("bits", "grey", "Gaussian in bins"),
            "lower",
            BETTER,
        )
        for name in ("logistic mixture, K = 3", "categorical")
    ),
    Claim(
        "Collapse and blur",
        "when the decoder is too powerful, it can learn to ignore the latent representation",
        IBRAHIM + "problem statement",
        "nats in the latents of black-and-white images, autoregressive decoder against convolutional: a fifth less?",
        "vae_beta",
        beta("kl", "binary", "autoregressive"),
        beta("kl", "binary", "convolutional"),
        "lower",
        MUCH,
    ),
    Claim(
        "Collapse and blur",
        "A strong decoder ignores its latents altogether",
        OURS,
        "nats in the latents of black-and-white images with an autoregressive decoder: fewer than one?",
        "vae_beta",
        beta("kl", "binary", "autoregressive"),
        0.0,
        "higher",
        1.0,
        relative=False,
        little=True,
    ),
    Claim(
        "Collapse and blur",
        "samples generated from VAEs tend to be blurry",
        ZHAO + "section 1.1",
        "edge energy of samples over that of test images, β_KL = 1: a fifth below 1?",
        "vae_beta",
        beta("sharpness_samples", "grey", "convolutional"),
        1.0,
        "lower",
        MUCH,
    ),
    Claim(
        "Collapse and blur",
        "the decoder often produces an averaged reconstruction, resulting in blurry outputs",
        ZHAO + "section 1.1",
        "edge energy of reconstructions, VAE at β_KL = 1 against an autoencoder of the same size: lower?",
        "vae_beta",
        beta("sharpness", "grey", "convolutional"),
        beta("sharpness", "grey", "autoencoder", 0.0),
        "lower",
        BETTER,
    ),
    # Cost
    *(
        Claim(
            "Cost of the search",
            "Single forward uses O(HWK) computation time",
            FLOW + "; asked so since a first run: O(…) is an upper bound",
            f"exponent of the time in {name}: at most 1.15?",
            "search_cost",
            Side("exponent", {"grows": grows}),
            1.0,
            "higher",
            0.15,
            relative=False,
            little=True,
        )
        for grows, name in (("positions", "h·w"), ("codes", "K"))
    ),
    *(
        Claim(
            "Cost of the search",
            "D, which the sentence leaves out, does not matter",
            OURS,
            f"exponent of the time in D from {values}: 0 to within 0.15?",
            "search_cost",
            Side("exponent", {"grows": grows}),
            0.0,
            "same",
            0.15,
            relative=False,
        )
        for grows, values in (("dims", "64 to 512"), ("few dims", "4 to 16"))
    ),
)


def judged(
    claims: Sequence[Claim], experiment: str, data: str, cells: Sequence[Cell]
) -> Iterator[tuple[Claim, Verdict]]:
    """Those of the claims that cells of this experiment on these images say something about, and what follows."""
    for claim in claims:
        if claim.experiment == experiment and (not claim.data or data in claim.data):
            verdict = claim.verdict(cells)
            if verdict.seeds:
                yield claim, verdict
