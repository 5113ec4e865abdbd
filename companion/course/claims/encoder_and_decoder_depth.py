"""Does a deeper encoder or a deeper decoder lose less?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, TOKENIZER_NUMBERS, Claim, Section
from companion.course.claims.sources import GRADIENT_FLOW, Source

ASKED_BY_REPORT = Source(
    reason=f"“How the encoder and the decoder affect performance?” is asked in {GRADIENT_FLOW.citation}"
)
NO_BLOCKS = {"encoder_blocks": 0, "decoder_blocks": 0}

SECTION = Section(
    title="Encoder and decoder",
    experiment="depth",
    claims=(
        Claim(
            sentence="A deeper encoder loses less",
            source=ASKED_BY_REPORT,
            compare=Comparison(
                what="distortion, 3 + 0 residual blocks against 0 + 0, K = 64, D = 8",
                candidate=Measurement(number="distortion", settings={"encoder_blocks": 3, "decoder_blocks": 0}),
                baseline=Measurement(number="distortion", settings=NO_BLOCKS),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="A deeper decoder loses less",
            source=ASKED_BY_REPORT,
            compare=Comparison(
                what="distortion, 0 + 3 residual blocks against 0 + 0, K = 64, D = 8",
                candidate=Measurement(number="distortion", settings={"encoder_blocks": 0, "decoder_blocks": 3}),
                baseline=Measurement(number="distortion", settings=NO_BLOCKS),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
    ),
    note="Residual blocks, beside the layers that halve the image.",
    shown=TOKENIZER_NUMBERS,
)
