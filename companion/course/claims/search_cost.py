"""How does the time to find the nearest codes grow with positions, codes and dimensions?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import Claim, Section
from companion.course.claims.sources import GRADIENT_FLOW, OUR_QUESTION, Source

SECTION = Section(
    title="Cost of the search",
    experiment="search_cost",
    claims=(
        *(
            Claim(
                sentence="Single forward uses O(HWK) computation time",
                source=Source(report=GRADIENT_FLOW, changed="asked so since a first run: O(…) is an upper bound"),
                compare=Comparison(
                    what=f"exponent of the time in {name}: at most 1.15?",
                    candidate=Measurement(number="exponent", settings={"grows": grows}),
                    baseline=1.0,
                    expected="higher",
                    by_less_than=0.15,
                    relative=False,
                ),
            )
            for grows, name in (("positions", "h·w"), ("codes", "K"))
        ),
        *(
            Claim(
                sentence="D, which the sentence leaves out, does not matter",
                source=OUR_QUESTION,
                compare=Comparison(
                    what=f"exponent of the time in D from {values}: 0 to within 0.15?",
                    candidate=Measurement(number="exponent", settings={"grows": grows}),
                    baseline=0.0,
                    expected="same",
                    within=0.15,
                    relative=False,
                ),
            )
            for grows, values in (("dims", "64 to 512"), ("few dims", "4 to 16"))
        ),
    ),
    note="The vectors of 32 images, random, so that no image is read; what does not grow is h·w = 144, K = 256, D = "
    "256.",
    shown={"exponent": "exponent"},
    draw=("search_cost",),
    random_vectors=True,
)
