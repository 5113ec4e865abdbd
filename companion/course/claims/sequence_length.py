"""How many codes should an image have, for the samples of a transformer over them?

Effect sizes are those that ``experiments/sequence_length.py`` states.
"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import MUCH, Claim, Section
from companion.course.claims.sources import ZHAO, Source

# The grids of codes, by the factors that divide 28×28 pixels.
GRID_7x7 = {"f_height": 4, "f_width": 4}
GRID_14x7 = {"f_height": 2, "f_width": 4}
GRID_14x14 = {"f_height": 2, "f_width": 2}
OTHER_GRIDS = [{"f_height": 7, "f_width": 7}, GRID_7x7, GRID_14x14]

SECTION = Section(
    title="Sequence length",
    experiment="sequence_length",
    claims=(
        Claim(
            sentence="The ideal sequence length for transformer is hw/8",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="share of samples recognised, 14 × 7 = 98 codes against the best other grid: two points more?",
                candidate=Measurement(number="accuracy", settings=GRID_14x7),
                baseline=Measurement(number="accuracy", rivals=OTHER_GRIDS),
                expected="higher",
                by_more_than=0.02,
                relative=False,
            ),
        ),
        Claim(
            sentence="The ideal sequence length for transformer is hw/8",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="bits per pixel, prior and residual together, 14 × 7 against the best other grid: a hundredth "
                "lower?",
                candidate=Measurement(number="bits_per_dimension", settings=GRID_14x7),
                baseline=Measurement(number="bits_per_dimension", rivals=OTHER_GRIDS),
                expected="lower",
                by_more_than=0.01,
            ),
        ),
        Claim(
            sentence="Longer sequence length will make the transformer harder to capture the true distribution",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="share of samples recognised, 14 × 14 = 196 codes against 98: two points less?",
                candidate=Measurement(number="accuracy", settings=GRID_14x14),
                baseline=Measurement(number="accuracy", settings=GRID_14x7),
                expected="lower",
                by_more_than=0.02,
                relative=False,
            ),
        ),
        Claim(
            sentence="shorter sequences will lose too much information of the original image",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="distortion, 7 × 7 = 49 codes against 98: a fifth higher?",
                candidate=Measurement(number="distortion", settings=GRID_7x7),
                baseline=Measurement(number="distortion", settings=GRID_14x7),
                expected="higher",
                by_more_than=MUCH,  # 20 %
            ),
        ),
    ),
    note="The report writes h, w for the grid of codes; here hw/8 is read as an eighth of the pixels: of 28×28 "
    "that is 98, a grid of 14×7, a stride of 2 down and 4 across. Tokenizers with 64 EMA codes of 8 "
    "dimensions; each prior trains for as many steps. What is tested of “too much” is that more is lost, of "
    "“the true distribution” what the classifier recognises.",
    shown={
        "accuracy": "samples recognised",
        "bits_per_dimension": "bits per pixel",
        "distortion": "distortion",
        "length": "codes",
        "bits_per_code": "bits per code",
        "ceiling": "reconstructions recognised",
        "frechet": "Fréchet distance of samples",
    },
)
