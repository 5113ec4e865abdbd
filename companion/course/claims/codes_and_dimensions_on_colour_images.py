"""Which of sixteen pairs of K and D is best on colour images? ("256-256 was the best.") And do few codes catch up?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, MUCH, TOKENIZER_NUMBERS, Claim, Section
from companion.course.claims.sources import GRADIENT_FLOW, OUR_QUESTION, Source

VALUES = (64, 128, 256, 512)  # of K, and of D
OTHER_PAIRS = [{"num_codes": k, "dim": d} for k in VALUES for d in VALUES if (k, d) != (256, 256)]
GRID_8x8 = {"factor": 4, "longer": 1}  # all sixteen pairs, latents of 8×8
GRID_16x16 = {"factor": 2, "longer": 1}
LONGER_8x8 = {"factor": 4, "longer": 4}  # trained four times as long

SECTION = Section(
    title="K × D on colour images",
    experiment="gradient_flow_grid",
    claims=(
        *(
            Claim(
                sentence="256-256 was the best",
                source=Source(report=GRADIENT_FLOW),
                compare=Comparison(
                    what=f"distortion of K = D = 256 against the best other cell of the grid, latents {latents}",
                    candidate=Measurement(number="distortion", settings={**grid, "num_codes": 256, "dim": 256}),
                    baseline=Measurement(number="distortion", settings=grid, rivals=OTHER_PAIRS),
                    expected="lower",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for latents, grid in (("8×8", GRID_8x8), ("16×16", GRID_16x16))
        ),
        Claim(
            sentence="The reconstruction loss of 256 codes showed the fastest decrease",
            source=Source(report=GRADIENT_FLOW),
            compare=Comparison(
                what="distortion after the first epoch, mean over D: K = 256 against the best other K, latents 8×8",
                candidate=Measurement(number="first_epoch", settings={**GRID_8x8, "num_codes": 256}),
                baseline=Measurement(
                    number="first_epoch",
                    settings=GRID_8x8,
                    rivals=[{"num_codes": 64}, {"num_codes": 128}, {"num_codes": 512}],
                ),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="If ther are two many codes, the shared latents are sparse",
            source=Source(report=GRADIENT_FLOW),
            compare=Comparison(
                what="share of the codes in use at K = 512 against K = 64, mean over D, latents 8×8: lower?",
                candidate=Measurement(number="usage", settings={**GRID_8x8, "num_codes": 512}),
                baseline=Measurement(number="usage", settings={**GRID_8x8, "num_codes": 64}),
                expected="lower",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="Few codes overtake many when they are trained longer",
            source=Source(
                reason="“What happens if training is done further with small nubmer of latent codes?” is asked in "
                f"{GRADIENT_FLOW.citation}"
            ),
            compare=Comparison(
                what="does K = 64 trained four times as long lose less than K = 256? distortion, D = 256, latents 8×8",
                candidate=Measurement(number="distortion", settings={**LONGER_8x8, "num_codes": 64, "dim": 256}),
                baseline=Measurement(number="distortion", settings={**GRID_8x8, "num_codes": 256, "dim": 256}),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="… and when the large codebook is trained as long?",
            source=OUR_QUESTION,
            compare=Comparison(
                what="distortion, K = 64 against K = 256, both trained four times as long, D = 256: within a "
                "twentieth?",
                candidate=Measurement(number="distortion", settings={**LONGER_8x8, "num_codes": 64, "dim": 256}),
                baseline=Measurement(number="distortion", settings={**LONGER_8x8, "num_codes": 256, "dim": 256}),
                expected="same",
                within=BETTER,  # 5 %
            ),
        ),
    ),
    note="The report's example has latents of 12×12, which no whole factor of 32 gives: 8×8 (f = 4) and 16×16 (f = "
    "2) are on either side of it. It names no data set; CIFAR-10 has the size of its images. A share of the "
    "codes falls by arithmetic where their number stays the same: see the perplexity. A first run with batches "
    "of 128, 144 steps, was thrown away when it had been seen: its networks still lost twice as much. The best "
    "other cell of a seed is the one that is best in the other seeds.",
    shown={**TOKENIZER_NUMBERS, "first_epoch": "after one epoch"},
    draw=("grid",),
    data="CIFAR10-jpeg",
)
