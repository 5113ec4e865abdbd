"""Does a wider encoder or a wider decoder lose less?"""

from companion.course.claims.encoder_and_decoder_depth import ASKED_BY_REPORT
from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, TOKENIZER_NUMBERS, Claim, Section

BOTH_NARROW = {"encoder": "narrow", "decoder": "narrow"}

SECTION = Section(
    title="Encoder and decoder, width",
    experiment="width",
    claims=(
        Claim(
            sentence="A wider encoder loses less",
            source=ASKED_BY_REPORT,
            compare=Comparison(
                what="distortion with the encoder four times as wide, against both narrow, K = 64, D = 8",
                candidate=Measurement(number="distortion", settings={"encoder": "wide", "decoder": "narrow"}),
                baseline=Measurement(number="distortion", settings=BOTH_NARROW),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="A wider decoder loses less",
            source=ASKED_BY_REPORT,
            compare=Comparison(
                what="distortion with the decoder four times as wide, against both narrow, K = 64, D = 8",
                candidate=Measurement(number="distortion", settings={"encoder": "narrow", "decoder": "wide"}),
                baseline=Measurement(number="distortion", settings=BOTH_NARROW),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
    ),
    note="Encoder first, decoder second; narrow is a quarter.",
    shown=TOKENIZER_NUMBERS,
)
