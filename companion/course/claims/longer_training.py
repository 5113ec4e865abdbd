"""Does a small codebook that is trained longer overtake a large one? Grey images."""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, TOKENIZER_NUMBERS, Claim, Section
from companion.course.claims.sources import GRADIENT_FLOW, OUR_QUESTION, Source

SECTION = Section(
    title="Longer training",
    experiment="longer_training",
    claims=(
        Claim(
            sentence="Few codes overtake many when they are trained longer",
            source=Source(
                reason="“What happens if training is done further with small nubmer of latent codes?” is asked in "
                f"{GRADIENT_FLOW.citation}"
            ),
            compare=Comparison(
                what="does K = 16 after the whole training lose less than K = 256 after a quarter of it? distortion, "
                "D = 8",
                candidate=Measurement(number="by_epoch[-1]", settings={"num_codes": 16}),
                baseline=Measurement(number="by_epoch[25%]", settings={"num_codes": 256}),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="… and when the large codebook is trained as long?",
            source=OUR_QUESTION,
            compare=Comparison(
                what="distortion after the whole training, K = 16 against K = 256, D = 8: within a twentieth?",
                candidate=Measurement(number="by_epoch[-1]", settings={"num_codes": 16}),
                baseline=Measurement(number="by_epoch[-1]", settings={"num_codes": 256}),
                expected="same",
                within=BETTER,  # 5 %
            ),
        ),
    ),
    note="The question of the same report, on grey images. D = 8.",
    shown=TOKENIZER_NUMBERS,
    draw=("longer_training",),
)
