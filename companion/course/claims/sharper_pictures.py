"""Is a perceptual loss enough for sharp reconstructions? What does a discriminator add, and what can go wrong?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, MUCH, SLIGHTLY, Claim, Section
from companion.course.claims.sources import BACKBONES, OUR_QUESTION, Source

LOSSES = Source(report=BACKBONES, section="on perceptual and GAN losses")
SET_UP = Source(report=BACKBONES, section="its set-up")
MSE, PERCEPTUAL, ADVERSARIAL = ({"variant": name} for name in ("mse", "perceptual", "adversarial"))

SECTION = Section(
    title="Perceptual and adversarial losses",
    experiment="sharper_pictures",
    claims=(
        Claim(
            sentence="The limitation of simple L2 loss is that it’s agnostic to aspects such as ‘sharpness’",
            source=LOSSES,
            compare=Comparison(
                what="sharpness, with a perceptual loss against MSE alone: a fifth higher?",
                candidate=Measurement(number="sharpness", settings=PERCEPTUAL),
                baseline=Measurement(number="sharpness", settings=MSE),
                expected="higher",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="Perceptual loss can help capture the ‘structure’ and ‘texture’ of the image",
            source=LOSSES,
            compare=Comparison(
                what="structural similarity (SSIM), with a perceptual loss against MSE alone",
                candidate=Measurement(number="ssim", settings=PERCEPTUAL),
                baseline=Measurement(number="ssim", settings=MSE),
                expected="higher",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="was sufficient to generate sharp images",
            source=SET_UP,
            compare=Comparison(
                what="sharpness with a perceptual loss, over that of the images: less than a half below 1?",
                candidate=Measurement(number="sharpness", settings=PERCEPTUAL),
                baseline=1.0,
                expected="lower",
                by_less_than=0.5,
                relative=False,
            ),
        ),
        Claim(
            sentence="was sufficient to generate sharp images",
            source=SET_UP,
            compare=Comparison(
                what="sharpness, with a perceptual loss against perceptual loss and discriminator: less than a tenth "
                "lower?",
                candidate=Measurement(number="sharpness", settings=PERCEPTUAL),
                baseline=Measurement(number="sharpness", settings=ADVERSARIAL),
                expected="lower",
                by_less_than=SLIGHTLY,  # 10 %
            ),
        ),
        Claim(
            sentence="GAN loss has been found to be effective in generating ‘sharp’ and ‘realistic’ images",
            source=LOSSES,
            compare=Comparison(
                what="Fréchet distance, perceptual loss and discriminator against MSE alone: a fifth lower?",
                candidate=Measurement(number="frechet", settings=ADVERSARIAL),
                baseline=Measurement(number="frechet", settings=MSE),
                expected="lower",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="A discriminator brings reconstructions nearer to the images than the perceptual loss alone does",
            source=OUR_QUESTION,
            compare=Comparison(
                what="Fréchet distance, perceptual loss and discriminator against the perceptual loss alone",
                candidate=Measurement(number="frechet", settings=ADVERSARIAL),
                baseline=Measurement(number="frechet", settings=PERCEPTUAL),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        Claim(
            sentence="Sharpness is paid for in squared error",
            source=OUR_QUESTION,
            compare=Comparison(
                what="MSE, MSE alone against the better of the perceptual loss without and with a discriminator",
                candidate=Measurement(number="mse", settings=MSE),
                baseline=Measurement(number="mse", rivals=[PERCEPTUAL, ADVERSARIAL]),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        *(
            Claim(
                sentence="A discriminator from the first step on does harm",
                source=OUR_QUESTION,
                compare=Comparison(
                    what=f"{title}, a discriminator from the start against one from half of the steps on",
                    candidate=Measurement(number=number, settings={"variant": "adversarial from the start"}),
                    baseline=Measurement(number=number, settings=ADVERSARIAL),
                    expected="higher",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for number, title in (("frechet", "Fréchet distance"), ("mse", "MSE"))
        ),
        Claim(
            sentence="Without the adaptive weight the codes collapse",
            source=OUR_QUESTION,
            compare=Comparison(
                what="perplexity, a fixed weight of 0.8 against 0.4 times the adaptive one: a fifth lower?",
                candidate=Measurement(number="perplexity", settings={"variant": "adversarial, fixed weight"}),
                baseline=Measurement(number="perplexity", settings=ADVERSARIAL),
                expected="lower",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="A discriminator that learns much faster than the tokenizer does harm",
            source=OUR_QUESTION,
            compare=Comparison(
                what="Fréchet distance, a discriminator with ten times the learning rate against the usual one",
                candidate=Measurement(number="frechet", settings={"variant": "fast discriminator"}),
                baseline=Measurement(number="frechet", settings=ADVERSARIAL),
                expected="higher",
                by_more_than=BETTER,  # 5 %
            ),
        ),
    ),
    note="K = 64, D = 8, 8×8 codes for pictures of 32×32, the same number of steps for all; the losses differ in the "
    "second half only, but for the discriminator from the start, which has the perceptual loss from the start too, so "
    "that its rows lean its way. (Before that half a discriminator learns alone for two epochs, on the tokenizer as "
    "it is; its rate is five times the tokenizer's.) Sharpness is here the variance of the Laplacian over that of the "
    "images, so that noise counts as sharp. The report's perceptual loss is LPIPS, on photographs; here it is the "
    "distance in the features of the small classifier that comes with the package. The Fréchet distance, of "
    "reconstructions to their own originals, looks at features of the same classifier, so that it leans the way of "
    "the perceptual loss. The checkerboard is the power at the highest frequencies, over that of the images. Before "
    "the comparisons were written, single trainings of the first three settings had been seen, with other sizes; "
    "after that the weights and rates were changed until the discriminator could keep up, on one training each.",
    shown={
        "sharpness": "sharpness of reconstructions",
        "frechet": "Fréchet distance",
        "mse": "MSE",
        "feature_distance": "feature distance",
        "ssim": "SSIM",
        "perplexity": "perplexity",
        "checkerboard": "checkerboard",
        "colour_shift": "shift of the mean colour",
        "logits_real": "logits, real",
        "logits_fake": "logits, rebuilt",
    },
    data="emoji",
)
