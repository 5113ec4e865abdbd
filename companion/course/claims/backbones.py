"""Convolutions, attention or Mamba around the codebook, and what helps against the grid of patches?"""

from companion.course.claims.rule import Comparison, Measurement
from companion.course.claims.section import BETTER, MUCH, SLIGHTLY, Claim, Section
from companion.course.claims.sources import BACKBONES, OUR_QUESTION, Source

COMPARED = Source(report=BACKBONES, section="on its comparison of three backbones")
BEFORE = Source(report=BACKBONES, section="on reconstructions at initialisation")
CURES = Source(report=BACKBONES, section="on grid artifacts")
BOTH_WAYS = Source(report=BACKBONES, section="on its bidirectional Mamba")
CONVNEXT, VIT, MAMBA, BIDIRECTIONAL = (
    {"variant": name} for name in ("convnext", "vit", "mamba2", "bidirectional mamba2")
)
OVERLAP, LAST_CONV, BOTH = (
    {"variant": name} for name in ("vit, overlapping patches", "vit, last convolution", "vit, both")
)

SECTION = Section(
    title="Backbones",
    experiment="backbones",
    claims=(
        *(
            Claim(
                sentence="CNN is a clear winner despite having the fewest parameters",
                source=COMPARED,
                compare=Comparison(
                    what=f"{title}, ConvNeXt against the better of ViT and the two Mambas: a fifth lower?",
                    candidate=Measurement(number=number, settings=CONVNEXT),
                    baseline=Measurement(number=number, rivals=[VIT, MAMBA, BIDIRECTIONAL]),
                    expected="lower",
                    by_more_than=MUCH,  # 20 %
                ),
            )
            for number, title in (("mse", "MSE"), ("frechet", "Fréchet distance"))
        ),
        *(
            Claim(
                sentence=f"{name} makes the better tokenizer",
                source=Source(reason="the report’s convolutions have both"),
                compare=Comparison(
                    what=f"MSE, {what}",
                    candidate=Measurement(number="mse", settings=candidate),
                    baseline=Measurement(number="mse", settings=baseline),
                    expected="lower",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for name, what, candidate, baseline in (
                (
                    "ConvNeXt instead of a ResNet",
                    "ConvNeXt against the ResNet of the other chapters",
                    CONVNEXT,
                    {"variant": "resnet"},
                ),
                (
                    "A transformer block before and after the quantizer",
                    "ConvNeXt with it against ConvNeXt",
                    {"variant": "convnext, attention"},
                    CONVNEXT,
                ),
            )
        ),
        Claim(
            sentence="compress (codebook loss) tends to converge very smoothly",
            source=COMPARED,
            compare=Comparison(
                what="bends of the codebook loss over the steps, ConvNeXt against the smoother of ViT and Mamba: a "
                "fifth lower?",
                candidate=Measurement(number="commitment_roughness", settings=CONVNEXT),
                baseline=Measurement(number="commitment_roughness", rivals=[VIT, MAMBA]),
                expected="lower",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="compress (codebook loss) tends to converge very smoothly",
            source=COMPARED,
            compare=Comparison(
                what="share of epochs in which the codebook loss rises, ConvNeXt against the better of ViT and Mamba: "
                "lower by a fifth of the epochs?",
                candidate=Measurement(number="commitment_rises", settings=CONVNEXT),
                baseline=Measurement(number="commitment_rises", rivals=[VIT, MAMBA]),
                expected="lower",
                by_more_than=0.2,
                relative=False,
            ),
        ),
        Claim(
            sentence="CNN’s initialisation is noisy, but resembles the original image",
            source=BEFORE,
            compare=Comparison(
                what="correlation of what the untrained ConvNeXt draws with the image: more than 0.5?",
                candidate=Measurement(number="initial_correlation", settings=CONVNEXT),
                baseline=0.0,
                expected="higher",
                by_more_than=0.5,
                relative=False,
            ),
        ),
        Claim(
            sentence="CNN’s initialisation is noisy, but resembles the original image",
            source=BEFORE,
            compare=Comparison(
                what="correlation of what the untrained network draws with the image, ConvNeXt against the better of "
                "ViT and Mamba: higher by 0.2?",
                candidate=Measurement(number="initial_correlation", settings=CONVNEXT),
                baseline=Measurement(number="initial_correlation", rivals=[VIT, MAMBA]),
                expected="higher",
                by_more_than=0.2,
                relative=False,
            ),
        ),
        *(
            Claim(
                sentence="Mamba and Attention backbones mostly output a grid-like noise pattern",
                source=BEFORE,
                compare=Comparison(
                    what=f"grid energy of what the untrained network draws, {name} against ConvNeXt: a fifth higher?",
                    candidate=Measurement(number="initial_grid_energy", settings=candidate),
                    baseline=Measurement(number="initial_grid_energy", settings=CONVNEXT),
                    expected="higher",
                    by_more_than=MUCH,  # 20 %
                ),
            )
            for name, candidate in (("ViT", VIT), ("Mamba", MAMBA))
        ),
        *(
            Claim(
                sentence="These ‘grid’ artifacts persist throughout the training",
                source=BEFORE,
                compare=Comparison(
                    what=f"{title}, {name} against ConvNeXt, after training: a fifth higher?",
                    candidate=Measurement(number=number, settings=candidate),
                    baseline=Measurement(number=number, settings=CONVNEXT),
                    expected="higher",
                    by_more_than=MUCH,  # 20 %
                ),
            )
            for number, title in (
                ("grid_energy", "grid energy"),
                ("seams", "steps across the edges of patches, over those inside"),
            )
            for name, candidate in (("ViT", VIT), ("Mamba", MAMBA))
        ),
        Claim(
            sentence="bidirectional Mamba and standard Mamba performed similarly",
            source=COMPARED,
            compare=Comparison(
                what="MSE, bidirectional Mamba against Mamba",
                candidate=Measurement(number="mse", settings=BIDIRECTIONAL),
                baseline=Measurement(number="mse", settings=MAMBA),
                expected="same",
                within=SLIGHTLY,  # 10 %
            ),
        ),
        Claim(
            sentence="It’s important to note that you flip back",
            source=BOTH_WAYS,
            compare=Comparison(
                what="MSE, bidirectional Mamba without the second flip against the one with it",
                candidate=Measurement(number="mse", settings={"variant": "bidirectional, not flipped back"}),
                baseline=Measurement(number="mse", settings=BIDIRECTIONAL),
                expected="higher",
                by_more_than=BETTER,  # 5 %
            ),
        ),
        *(
            Claim(
                sentence="adding extra convolutional layers and overlapping patches does help out with the performance",
                source=CURES,
                compare=Comparison(
                    what=f"MSE, ViT with {name} against ViT",
                    candidate=Measurement(number="mse", settings=candidate),
                    baseline=Measurement(number="mse", settings=VIT),
                    expected="lower",
                    by_more_than=BETTER,  # 5 %
                ),
            )
            for name, candidate in (
                ("a last convolution", LAST_CONV),
                ("overlapping patches", OVERLAP),
                ("both", BOTH),
            )
        ),
        *(
            Claim(
                sentence="Overlapping patches and a last convolution take the grid away",
                source=Source(reason="they are the report’s “two ideas” to fix it"),
                compare=Comparison(
                    what=f"{title}, ViT with both against ViT: a fifth lower?",
                    candidate=Measurement(number=number, settings=BOTH),
                    baseline=Measurement(number=number, settings=VIT),
                    expected="lower",
                    by_more_than=MUCH,  # 20 %
                ),
            )
            for number, title in (
                ("grid_energy", "grid energy"),
                ("seams", "steps across the edges of patches, over those inside"),
            )
        ),
        Claim(
            sentence="it’s still nowhere close to the performance of the CNN backbone",
            source=CURES,
            compare=Comparison(
                what="MSE, ViT with both against ConvNeXt: a fifth higher?",
                candidate=Measurement(number="mse", settings=BOTH),
                baseline=Measurement(number="mse", settings=CONVNEXT),
                expected="higher",
                by_more_than=MUCH,  # 20 %
            ),
        ),
        Claim(
            sentence="Latents without a position of their own do nearly as well as one for each patch",
            source=OUR_QUESTION,
            compare=Comparison(
                what="MSE, 64 latent tokens (TiTok) against ViT: less than a tenth higher?",
                candidate=Measurement(number="mse", settings={"variant": "latent tokens"}),
                baseline=Measurement(number="mse", settings=VIT),
                expected="higher",
                by_less_than=SLIGHTLY,  # 10 %
            ),
        ),
    ),
    note="K = 64, D = 8, 64 codes for pictures of 32×32, the same steps on the same batches at the same rate for all, "
    "and the same number of weights within a tenth (the report’s convolutions have the fewest; equal numbers of "
    "weights are not equal work: see the column of operations). Without the report’s perceptual loss, augmentation "
    "and normalised codes. The rate was chosen on single trainings, after the comparisons were written: of four "
    "rates the best at which the ViT was stable with two seeds; at a higher one the errors of ConvNeXt and Mamba "
    "were 6 % lower. *Grid energy* is the power at the frequencies of the patches over that at the frequencies "
    "beside them, about 1 without a grid; it sees a texture that is the same in all patches. *Seams* are the "
    "squared steps across the edges of patches over those inside them, over the same of the images; they also see a "
    "mosaic. What an untrained network draws is taken without quantizing, and its correlation with an image after "
    "the best affine map of its colours. How smoothly the codebook loss falls is the mean bend of its logarithm "
    "over thirty parts of the training. Operations are those of convolutions and matrix products, forwards and "
    "backwards, for one image. The Fréchet distance, of reconstructions to their own originals, looks at features "
    "of the small classifier that comes with the package. The second correlation looks below the pattern that an "
    "untrained decoder draws over everything, at the mean colours of patches and at what differs from image to "
    "image; it was added when the first had been seen for two seeds.",
    shown={
        "mse": "MSE",
        "frechet": "Fréchet distance",
        "grid_energy": "grid energy",
        "seams": "seams",
        "ssim": "SSIM",
        "sharpness": "sharpness of reconstructions",
        "perplexity": "perplexity",
        "initial_correlation": "correlation before training",
        "initial_correlation_of_patches": "correlation before training, patches",
        "initial_grid_energy": "grid energy before training",
        "commitment_roughness": "bends of the codebook loss",
        "commitment_rises": "epochs in which it rises",
        "parameters": "weights",
        "gigaflops": "10⁹ operations an image",
    },
    data="emoji",
)
