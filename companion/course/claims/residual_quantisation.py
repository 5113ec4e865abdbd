"""Does residual quantisation lose less than plain quantisation: with as many codes, and with as many bits?"""

from companion.course.claims.ema_codebook import SHOWN, VQ_256, RQ_2x128
from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, MUCH, Claim, Section
from companion.course.claims.sources import IBRAHIM, OUR_QUESTION, Source

RQ_2x16 = {"depth": 2, "num_codes": 16}  # two residual quantisers, K = 16 each: 8 bits, as VQ with K = 256
RQ_3x256 = {"depth": 3, "num_codes": 256}

SECTION = Section(
    title="Residual against plain quantisation",
    experiment="ibrahim_residual",
    claims=(
        *(
            Claim(
                sentence="RQ VAE performed much better than VQ VAE for the same number of total codebooks",
                source=Source(report=IBRAHIM, section="figure 8"),
                compare=Comparison(
                    what=f"distortion, RQ 2 × 128 against VQ 256, {codebook} codebooks: a fifth lower?",
                    candidate=Measurement(number="distortion", settings={**RQ_2x128, "codebook": codebook}),
                    baseline=Measurement(number="distortion", settings={**VQ_256, "codebook": codebook}),
                    expected="lower",
                    by_more_than=MUCH,  # 20 %
                ),
            )
            for codebook in ("learned", "EMA")
        ),
        *(
            Claim(
                sentence="… and at the same number of bits?",
                source=OUR_QUESTION,
                compare=Comparison(
                    what=f"distortion at 8 nominal bits, RQ 2 × 16 against VQ 256, {codebook} codebooks: lower?",
                    candidate=Measurement(number="distortion", settings={**RQ_2x16, "codebook": codebook}),
                    baseline=Measurement(number="distortion", settings={**VQ_256, "codebook": codebook}),
                    expected="lower",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for codebook in ("learned", "EMA")
        ),
        *(
            Claim(
                sentence="quantizer is reducing the quantization error in each step",
                source=Source(report=IBRAHIM, section="figure 9"),
                compare=Comparison(
                    what=f"mean squared residual after quantiser {depth} against before it, three quantisers",
                    candidate=Measurement(number=f"residual_by_depth[{depth}]", settings=RQ_3x256),
                    baseline=Measurement(number=f"residual_by_depth[{depth - 1}]", settings=RQ_3x256),
                    expected="lower",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for depth in (1, 2, 3)
        ),
    ),
    note="The same run as in the section before. The report's “while keeping the complexity the same” (summary) is "
    "the same number of codes: 14 bits a position against 8. Its figure 8 shows total losses; here it is "
    "distortion. Nominal bits are log₂ of the number of codes; what the codes in use come to is in the table.",
    shown=SHOWN,
    draw=("residuals",),
)
