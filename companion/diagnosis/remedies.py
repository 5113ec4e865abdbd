"""What each finding means, and what mends it, in the names of this library's arguments.

In a repair, ``Name(argument=…)`` stands for a class or function of ``companion`` and an argument that it has; a test
looks them all up.
"""

MEANING_AND_REPAIR: dict[str, tuple[str, str]] = {
    "weights that are not finite": (
        "The run diverged: everything that these weights touch is NaN.",
        "Go back to the last good state of the run, and train on with a lower rate, fit(lr=…), a tenth of the former; "
        "where it was trained in half precision, with fit(precision='bf16') or 'no'.",
    ),
    "images out of range": (
        "The images are not those that a model of this library learns from, in [0, 1] and using the range: bytes that "
        "were not divided by 255, or divided twice; images in −1 … 1; or a single grey value.",
        "Look at one image with plots.image_rows. Bytes belong into ImageSet(images=…), which divides by 255 once; "
        "images in −1 … 1 become (x + 1) / 2.",
    ),
    "a codebook that was never trained": (
        "The codes are still random: k-means takes them from the first batch in training mode, and there was none.",
        "Train the model before it encodes: fit(epochs=…). Codes of your own go into "
        "EMAVectorQuantizer.from_codebook(codebook=…).",
    ),
    "one code for all": (
        "The codebook collapsed: nearly all positions have one and the same code, so the codes say nothing.",
        "Start the codes from data and restart those that die: EMAVectorQuantizer(init='k-means'), "
        "EMAVectorQuantizer(restart_below=0.1) and EMAVectorQuantizer(decay=0.9) for the first epochs. If the latents "
        "themselves are all alike, lower the weight of the quantizer's loss, VQVAE(quantizer_weight=…), or the rate, "
        "fit(lr=…).",
    ),
    "codes that ignore the image": (
        "Each position has the same code in every image: the encoder passes on where it is, not what it sees.",
        "Lower the pull of the quantizer on the encoder: EMAVectorQuantizer(commitment_weight=…) or "
        "VQVAE(quantizer_weight=…), a tenth of the former. Check that the images differ, and that gradients reach the "
        "encoder.",
    ),
    "latents running away": (
        "The latents are longer than the codes can follow: the encoder grows, the codes lag behind, and the decoder is "
        "given something else than the encoder meant.",
        "Tie the latents to their codes, VectorQuantizer(commitment_weight=0.25) or more, and let the codes follow "
        "faster: EMAVectorQuantizer(decay=0.9), or EMAVectorQuantizer(cosine=True), where length does not count.",
    ),
    "a codebook far from its latents": (
        "The codes lie beside the latents: the nearest code is no nearer than the mean of all latents, so that few "
        "codes are ever chosen and the codes tell little about the latents.",
        "Take the first codes from the data, EMAVectorQuantizer(init='k-means'), or set them: "
        "EMAVectorQuantizer.from_codebook(codebook=…) with the centres of k_means(vectors=…). After that, "
        "EMAVectorQuantizer(restart_below=…) fetches those that are left behind.",
    ),
    "dead codes": (
        "Codes that no vector chooses: the table costs their bits, and the decoder has never seen them.",
        "Restart them sooner, EMAVectorQuantizer(restart_below=0.1) with EMAVectorQuantizer(decay=0.9); look codes up "
        "in few dimensions, ProjectedQuantizer(quantizer=…); or take fewer, EMAVectorQuantizer(num_codes=…).",
    ),
    "images unlike the training images": (
        "The codes have other shares than in training: these are not images of the kind that the model learnt from, "
        "such as white on black where it saw black on white, or of another brightness.",
        "Bring the images into the form of the training images, or train on these: fit(train=…), with augment.Augment "
        "as fit(augment=…) where they vary.",
    ),
    "the same draw at every depth": (
        "Two depths have the same codes, or choose the same index everywhere: they were drawn alike, or copied, and "
        "the deeper one refines nothing.",
        "Give each depth a quantizer of its own, ResidualQuantizer(quantizers=…) with one for each depth, made anew "
        "and not copied; EMAVectorQuantizer(seed=…) may be the same, since the members draw from streams of their own. "
        "One codebook for all depths is ResidualQuantizer(depth=…).",
    ),
    "depths that add nothing": (
        "This depth leaves the residual as it is: its bits buy nothing.",
        "Start each depth from its own residuals, EMAVectorQuantizer(init='k-means'), and raise dead codes, "
        "EMAVectorQuantizer(restart_below=…). If the error before this depth is small already, take fewer depths.",
    ),
    "a decoder that ignores its codes": (
        "Codes of another image give the same reconstruction: whatever the codes say, the decoder does not read it.",
        "Check that the decoder gets z_q and that its gradient is finite; train longer or faster, fit(lr=…); a weight "
        "of the quantizer's loss that drowns the reconstruction is VQVAE(quantizer_weight=…). A decoder that reads "
        "the pixels as well needs less context: AutoregressiveDecoder(layers=…).",
    ),
    "reconstructions no better than the mean picture": (
        "The same grey picture for all images would be as near to them.",
        "If the codes collapsed, mend that first. Otherwise train longer, fit(epochs=…), at another rate, fit(lr=…), "
        "with a wider model, ResNetEncoder(hidden=…), or check that the images are of the kind that it was trained on.",
    ),
    "posterior collapse": (
        "Nearly no dimension of the latents tells one image from another: q(z|x) is the prior, and the decoder does "
        "without z.",
        "Weigh the KL term less, VAE(beta=…), or raise it from 0 in the first epochs; take a decoder that cannot do "
        "without z (an AutoregressiveDecoder(layers=…) of less context).",
    ),
    "a prior for another tokenizer": (
        "The prior learnt the codes of another tokenizer: the same index stands for another vector here.",
        "Train it on tokenize(tokenizer=…) of this one, or load the tokenizer that its name stands for "
        "(prior.tokenizer; check_identity(tokenizer=…) compares).",
    ),
    "a prior no better than counting codes": (
        "A table of how often each code occurs would guess the next code as well: the prior learnt no order.",
        "Train longer, fit(epochs=…), at another rate, fit(lr=…); and compare the codes with those that it was trained "
        "on: check_identity(tokenizer=…).",
    ),
    "a prior that ignores the codes before": (
        "A table of how often each code occurs at each position would guess as well: the codes before a position are "
        "not used.",
        "Train longer, fit(epochs=…), with more layers, TransformerPrior(layers=…), or heads; less dropout, "
        "TransformerPrior(dropout=…).",
    ),
    "a prior that ignores its class": (
        "Wrong labels cost no more bits than right ones: samples of a class are samples of all.",
        "Train it on codes with their labels: CodeSet(labels=…), which fit(train=…) hands on; and drop fewer of them, "
        "TransformerPrior(label_dropout=0.1).",
    ),
    "samples that repeat few codes": (
        "Samples use far fewer codes than images do, or repeat each other: they all look alike.",
        "Sample warmer and less cut: TransformerPrior.sample(temperature=1.0), TransformerPrior.sample(top_k=None), "
        "TransformerPrior.sample(top_p=None). If it is so without these, the prior is not trained: fit(epochs=…).",
    ),
}
