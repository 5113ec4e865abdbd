"""Does a strong decoder ignore the latents of a VAE? And are its samples and reconstructions blurry?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, MUCH, Claim, Section
from companion.course.claims.sources import IBRAHIM, OUR_QUESTION, ZHAO, Source

AUTOREGRESSIVE = {"images": "binary", "decoder": "autoregressive", "beta": 1.0}
GREY = {"images": "grey", "decoder": "convolutional", "beta": 1.0}

SECTION = Section(
    title="Collapse and blur",
    experiment="vae_beta",
    claims=(
        Claim(
            sentence="when the decoder is too powerful, it can learn to ignore the latent representation",
            source=Source(report=IBRAHIM, section="problem statement"),
            compare=Comparison(
                what="nats in the latents of black-and-white images, autoregressive decoder against convolutional: a "
                "fifth less?",
                candidate=Measurement(number="kl", settings=AUTOREGRESSIVE),
                baseline=Measurement(
                    number="kl", settings={"images": "binary", "decoder": "convolutional", "beta": 1.0}
                ),
                expected="lower",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="A strong decoder ignores its latents altogether",
            source=OUR_QUESTION,
            compare=Comparison(
                what="nats in the latents of black-and-white images with an autoregressive decoder: fewer than one?",
                candidate=Measurement(number="kl", settings=AUTOREGRESSIVE),
                baseline=0.0,
                expected="higher",
                by_less_than=1.0,
                relative=False,
            ),
        ),
        Claim(
            sentence="samples generated from VAEs tend to be blurry",
            source=Source(report=ZHAO, section="section 1.1"),
            compare=Comparison(
                what="edge energy of samples over that of test images, β_KL = 1: a fifth below 1?",
                candidate=Measurement(number="sharpness_samples", settings=GREY),
                baseline=1.0,
                expected="lower",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="the decoder often produces an averaged reconstruction, resulting in blurry outputs",
            source=Source(report=ZHAO, section="section 1.1"),
            compare=Comparison(
                what="edge energy of reconstructions, VAE at β_KL = 1 against an autoencoder of the same size: lower?",
                candidate=Measurement(number="sharpness", settings=GREY),
                baseline=Measurement(
                    number="sharpness", settings={"images": "grey", "decoder": "autoencoder", "beta": 0.0}
                ),
                expected="lower",
                by_more_than=BETTER,  # 5 %
            ),
        ),
    ),
    note="Sixteen latents. Chapter 02 shows the whole sweep over β_KL on glyphs.",
    shown={
        "kl": "nats in the latents",
        "sharpness": "sharpness of reconstructions",
        "sharpness_samples": "sharpness of samples",
        "active_units": "latents in use",
        "elbo": "bound, nats",
    },
)
