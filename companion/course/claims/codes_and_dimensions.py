"""What do more codes (K) or longer codes (D) change: in reconstructions, in use of the codes, in a prior over them?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, SLIGHTLY, Claim, Section
from companion.course.claims.sources import OUR_QUESTION, ZHAO, Source

SECTION = Section(
    title="K and D",
    experiment="zhao_codes_and_dims",
    claims=(
        Claim(
            sentence="Larger codebooks with length 256 will only slightly improve the performance",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="distortion at K = 256 against K = 128, D = 8: less than a tenth lower?",
                candidate=Measurement(number="distortion", settings={"num_codes": 256, "dim": 8}),
                baseline=Measurement(number="distortion", settings={"num_codes": 128, "dim": 8}),
                expected="lower",
                by_less_than=SLIGHTLY,  # 10 %
            ),
        ),
        Claim(
            sentence="Bigger dimensions like 16 tends to make the model use less diverse codes",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="perplexity at D = 16 against D = 8, K = 128",
                candidate=Measurement(number="perplexity", settings={"num_codes": 128, "dim": 16}),
                baseline=Measurement(number="perplexity", settings={"num_codes": 128, "dim": 8}),
                expected="lower",
                by_more_than=SLIGHTLY,  # 10 %
            ),
        ),
        Claim(
            sentence="Smaller dimensions like 4 tends to produce blurry reconstructions",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="edge energy of the reconstructions over that of the images, D = 4 against D = 8, K = 128",
                candidate=Measurement(number="sharpness", settings={"num_codes": 128, "dim": 4}),
                baseline=Measurement(number="sharpness", settings={"num_codes": 128, "dim": 8}),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="which is caused by the loss of information",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="distortion at D = 4 against D = 8, K = 128: higher?",
                candidate=Measurement(number="distortion", settings={"num_codes": 128, "dim": 4}),
                baseline=Measurement(number="distortion", settings={"num_codes": 128, "dim": 8}),
                expected="higher",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="the corresponding transformer will be harder to train",
            source=Source(
                report=ZHAO,
                section="section 4",
                changed="asked so since a first run of three seeds, which had compared the bits themselves",
            ),
            compare=Comparison(
                what="bits of a class-conditional prior over those of the codes' shares at each position, K = 256 "
                "against K = 128, D = 8: higher?",
                candidate=Measurement(
                    number="prior_bits/entropy_bits_per_position", settings={"num_codes": 256, "dim": 8}
                ),
                baseline=Measurement(
                    number="prior_bits/entropy_bits_per_position", settings={"num_codes": 128, "dim": 8}
                ),
                expected="higher",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="A prior needs more bits for the codes of a larger codebook",
            source=OUR_QUESTION,
            compare=Comparison(
                what="bits per test image of a class-conditional prior, K = 256 against K = 128, D = 8: higher?",
                candidate=Measurement(number="prior_bits", settings={"num_codes": 256, "dim": 8}),
                baseline=Measurement(number="prior_bits", settings={"num_codes": 128, "dim": 8}),
                expected="higher",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="the generation result will be less authentic",
            source=Source(report=ZHAO, section="section 4"),
            compare=Comparison(
                what="share of samples recognised as the class asked for, K = 256 against K = 128, D = 8: two points "
                "less?",
                candidate=Measurement(number="recognised", settings={"num_codes": 256, "dim": 8}),
                baseline=Measurement(number="recognised", settings={"num_codes": 128, "dim": 8}),
                expected="lower",
                by_more_than=0.02,
                relative=False,
            ),
        ),
    ),
    note="α = 1 and β = 0.25, where the report has 2 and 0.1. The prior (D = 8 only) has 4 heads where the report "
    "says 5, which do not divide its width of 64; in profile quick it trains for three epochs only. Samples "
    "are at temperature 1, class by class, means of p(x|z) without noise.",
    shown={
        "distortion": "distortion",
        "perplexity": "perplexity",
        "sharpness": "sharpness",
        "usage": "codes in use",
        "prior_bits": "bits of the prior",
        "recognised": "samples recognised",
        "frechet": "Fréchet distance of samples",
    },
)
