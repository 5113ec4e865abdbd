"""Which classes do samples of a transformer prior have, with one start token for all or one for each class?

Effect sizes are those that ``experiments/prior.py`` states.
"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import MUCH, Claim, Section
from companion.course.claims.sources import OUR_QUESTION, ZHAO, Source

ONE_START = {"prior": "transformer", "sos": "one"}  # the same `<sos>` for every sample
CLASS_START = {"prior": "transformer", "sos": "class"}  # a `<sos>` for each class

SECTION = Section(
    title="Prior and sampling",
    experiment="prior",
    claims=(
        Claim(
            sentence="Sampling using the transformer tends to produce only a number of classes",
            source=Source(report=ZHAO, section="section 3.5"),
            compare=Comparison(
                what="classes among the samples (effective number), one `<sos>`, temperature 2 and k = 8, against the "
                "10 there are: more than one missing?",
                candidate=Measurement(number="t2_k8_classes", settings=ONE_START),
                baseline=10.0,
                expected="lower",
                by_more_than=1.0,
                relative=False,
            ),
        ),
        *(
            Claim(
                sentence="Numbers like 1 and 7 does not appear",
                source=Source(report=ZHAO, section="section 3.5"),
                compare=Comparison(
                    what=f"share of {digit} among the samples, one `<sos>`, temperature 2 and k = 8: below a "
                    "hundredth?",
                    candidate=Measurement(number=f"t2_k8_shares[{digit}]", settings=ONE_START),
                    baseline=0.0,
                    expected="higher",
                    by_less_than=0.01,
                    relative=False,
                ),
                only_on=("mnist", "glyphs"),
            )
            for digit in (1, 7)
        ),
        Claim(
            sentence="generating all samples using the same `<sos>` token works bad",
            source=Source(
                report=ZHAO,
                section="section 3.6",
                changed="compared so since the glyphs had been run, before MNIST",
            ),
            compare=Comparison(
                what="Fréchet distance of samples at temperature 2 and k = 8, one `<sos>` against class `<sos>`: a "
                "fifth higher?",
                candidate=Measurement(number="t2_k8_frechet", settings=ONE_START),
                baseline=Measurement(number="t2_k8_frechet", settings=CLASS_START),
                expected="higher",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="A single `<sos>` loses classes",
            source=OUR_QUESTION,
            compare=Comparison(
                what="effective number at temperature 1, one `<sos>` against class `<sos>`: one fewer?",
                candidate=Measurement(number="t1_classes", settings=ONE_START),
                baseline=Measurement(number="t1_classes", settings=CLASS_START),
                expected="lower",
                by_more_than=1.0,
                relative=False,
            ),
        ),
        Claim(
            sentence="Temperature 2 with k = 8 loses classes",
            source=Source(reason="what the report samples with, section 3.3"),
            compare=Comparison(
                what="effective number, one `<sos>`, temperature 2 and k = 8 against temperature 1: one fewer?",
                candidate=Measurement(number="t2_k8_classes", settings=ONE_START),
                baseline=Measurement(number="t1_classes", settings=ONE_START),
                expected="lower",
                by_more_than=1.0,
                relative=False,
            ),
        ),
        Claim(
            sentence="conditional generation solves this problem",
            source=Source(
                report=ZHAO,
                section="section 3.5",
                changed="compared so since the glyphs had been run, before MNIST",
            ),
            compare=Comparison(
                what="effective number of classes at temperature 2 and k = 8, class `<sos>`, against the 10 there "
                "are: less than half a class missing?",
                candidate=Measurement(number="t2_k8_classes", settings=CLASS_START),
                baseline=10.0,
                expected="lower",
                by_less_than=0.5,
                relative=False,
            ),
        ),
        Claim(
            sentence="A transformer predicts codes better than a PixelCNN",
            source=Source(reason="the report takes the one for the other, section 2.4"),
            compare=Comparison(
                what="bits per test image with class `<sos>`, transformer against PixelCNN of as many weights: a "
                "fiftieth lower?",
                candidate=Measurement(number="bits", settings=CLASS_START),
                baseline=Measurement(number="bits", settings={"prior": "PixelCNN", "sos": "class"}),
                expected="lower",
                by_more_than=0.02,
            ),
        ),
    ),
    note="Four heads, since the report's 5 do not divide its width of 64; codes of the shipped tokenizer, K = 64, "
    "of which k = 8 keeps an eighth (the report's 128: a sixteenth). The effective number of classes is "
    "exp(entropy) of what the shipped classifier takes the samples for.",
    shown={
        "t1_classes": "classes, temperature 1",
        "t2_k8_classes": "classes, temperature 2, k = 8",
        "bits": "bits per test image",
        "t1_frechet": "Fréchet, temperature 1",
        "t2_k8_frechet": "Fréchet, temperature 2, k = 8",
        "t1_accuracy": "recognised, temperature 1",
        "t2_k8_accuracy": "recognised, temperature 2, k = 8",
    },
)
