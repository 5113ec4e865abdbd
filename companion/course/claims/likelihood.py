"""Which likelihood suits which images: grey ones, and black-and-white ones?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, Claim, Section
from companion.course.claims.sources import OUR_QUESTION, YESILTEPE, Source

SECTION = Section(
    title="Likelihood",
    experiment="yesiltepe_likelihood",
    claims=(
        Claim(
            sentence="The mean of a Bernoulli loses less than that of a Gaussian",
            source=Source(
                reason="“outputing Bernoulli Distribution parameter is a natural choice” for grey images such as "
                f"MNIST, {YESILTEPE.citation}, likelihood"
            ),
            compare=Comparison(
                what="grey images: distortion of the mean image, Bernoulli against Gaussian in bins",
                candidate=Measurement(number="distortion", settings={"images": "grey", "likelihood": "Bernoulli"}),
                baseline=Measurement(
                    number="distortion", settings={"images": "grey", "likelihood": "Gaussian in bins"}
                ),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="A Bernoulli is the better one for black-and-white images",
            source=OUR_QUESTION,
            compare=Comparison(
                what="black-and-white images: bits per pixel, Bernoulli against the logistic mixture",
                candidate=Measurement(number="bits", settings={"images": "binary", "likelihood": "Bernoulli"}),
                baseline=Measurement(
                    number="bits", settings={"images": "binary", "likelihood": "logistic mixture, K = 3"}
                ),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        *(
            Claim(
                sentence="Categorical Distribution or Logistic Mixture Distribution would be natural choices",
                source=Source(report=YESILTEPE, section="likelihood"),
                compare=Comparison(
                    what=f"grey images: bits per pixel, {name} against Gaussian in bins",
                    candidate=Measurement(number="bits", settings={"images": "grey", "likelihood": name}),
                    baseline=Measurement(number="bits", settings={"images": "grey", "likelihood": "Gaussian in bins"}),
                    expected="lower",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for name in ("logistic mixture, K = 3", "categorical")
        ),
    ),
    note="Bits per pixel are the bound on −log₂ p(x); a Bernoulli has none on grey images. “Natural” is taken to "
    "mean better than a Gaussian in bins of the same scale for all pixels. Distortion (here over the variance "
    "of the test images) is what a Gaussian is trained for, so that the first row leans its way; the point "
    "against a Bernoulli is that it gives grey images no probability (study 02b). On black-and-white images "
    "the mixture spreads over 256 values, so that the second row leans the Bernoulli's way.",
    shown={"bits": "bits per pixel", "distortion": "distortion of the mean"},
)
