"""What the source reports claim, and the comparisons that decide it: one file for each section of the page.

A section's file has what a sentence claims, where it stands, and which measurement decides it; ``rule`` has how. The
page is ``experiments/README.md``; chapters show single sections with ``companion.course.results.measured_claims``.
"""

from companion.course.claims import (
    backbones,
    codes_and_dimensions,
    codes_and_dimensions_on_colour_images,
    collapse_and_blur,
    ema_codebook,
    encoder_and_decoder_depth,
    encoder_and_decoder_width,
    likelihood,
    longer_training,
    prior_and_sampling,
    residual_quantisation,
    rq_transformer,
    search_cost,
    sequence_length,
    sharper_pictures,
    vqvae_as_reported,
)
from companion.course.claims.rule import Verdict
from companion.course.claims.section import Claim, Section

__all__ = ["IMAGES", "NO_IMAGES", "SECTIONS", "Claim", "Section", "Verdict", "images_of", "sections_of"]

SECTIONS: tuple[Section, ...] = (  # in the order of the page
    vqvae_as_reported.SECTION,
    codes_and_dimensions.SECTION,
    codes_and_dimensions_on_colour_images.SECTION,
    longer_training.SECTION,
    prior_and_sampling.SECTION,
    sequence_length.SECTION,
    ema_codebook.SECTION,
    residual_quantisation.SECTION,
    rq_transformer.SECTION,
    encoder_and_decoder_depth.SECTION,
    encoder_and_decoder_width.SECTION,
    likelihood.SECTION,
    collapse_and_blur.SECTION,
    sharper_pictures.SECTION,
    backbones.SECTION,
    search_cost.SECTION,
)
IMAGES = {  # names of image sets → how a table calls them, in the order shown, the course's own last
    "mnist": "MNIST",
    "fashion-mnist": "Fashion-MNIST",
    "CIFAR10-jpeg": "CIFAR-10 (JPEG copy)",
    "cifar10": "CIFAR-10",
    "celeba": "CelebA",
    "emoji": "emoji",
    "glyphs": "glyphs",
}
NO_IMAGES = "random vectors"


def sections_of(experiment: str) -> list[Section]:
    """The sections whose claims this experiment decides."""
    return [section for section in SECTIONS if section.experiment == experiment]


def images_of(experiment: str, data: str) -> str:
    """What an experiment was run on, as a table calls it."""
    if any(section.random_vectors for section in sections_of(experiment)):
        return NO_IMAGES
    return IMAGES.get(data, data)
