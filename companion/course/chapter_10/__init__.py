"""Chapter 10, backbones: convolution, attention and Mamba around the codebook."""
