"""LPIPS: the feature distance on a network that has seen a million photographs (Zhang et al. 2018)."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from companion._arguments import brief, brief_kind, check_flag
from companion._extras import require
from companion.losses.feature_distance import FeatureDistance

# The ReLUs before each pooling, and the last one: conv1_2, conv2_2, conv3_3, conv4_3, conv5_3.
TAPS = ("3", "8", "15", "22", "29")
# Of the photographs that the network learnt from. The paper's code says the same of images in [−1, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lpips_vgg(weights: str | os.PathLike[str] | None = None, *, download: bool = False) -> FeatureDistance:
    """LPIPS with VGG16, version 0.1: torchvision's network, and the heads that come with the package ``lpips``.

    The five taps are the last ReLUs of VGG16's five stages (Simonyan & Zisserman 2015). The heads weigh their channels
    as fitted to human judgements. Grey images are given as three equal channels. Images are in [0, 1].

    The network was trained on photographs of about 224×224 pixels. On small images it still tells sharp from blurred,
    but nobody fitted the heads to that, so compare its numbers only with each other.

    Args:
        weights: a file of VGG16 as torchvision saves it. None: where ``torch.hub`` keeps what it downloads.
        download: fetch the file from torchvision's address, 528 MB, if it is not there. Nothing is fetched otherwise.

    Raises:
        FileNotFoundError: the file is not there; the message says where to get it, and where to put it.
        ImportError: torchvision or lpips is not installed.
        ValueError: the file holds something else.
    """
    models = require("torchvision.models", extra="lpips", what="lpips_vgg")
    heads = _heads()
    check_flag("download", download)
    state = _vgg_state(models.VGG16_Weights.IMAGENET1K_V1, weights, download)
    return FeatureDistance(_vgg_features(models, state), TAPS, heads, mean=MEAN, std=STD, repeat_grey=True)


def _heads() -> list[Tensor]:
    """w_l, (C_l,) for each tap, from the file in the package ``lpips``."""
    folder = Path(require("lpips", extra="lpips", what="lpips_vgg").__file__).parent
    state = torch.load(folder / "weights" / "v0.1" / "vgg.pth", map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(TAPS))]  # (1, C_l, 1, 1) → (C_l,)


def _vgg_state(published: Any, weights: Any, download: bool) -> dict[str, Tensor]:
    """The tensors of VGG16 by torchvision's names; ``published`` is torchvision's entry for the file."""
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise ValueError(f"weights: got {brief(weights)}, want the path of a file, or None")
    kept = Path(torch.hub.get_dir()) / "checkpoints" / published.url.rpartition("/")[2]
    path = kept if weights is None else Path(weights)
    if weights is None and (download or path.is_file()):
        return dict(
            published.get_state_dict(progress=False, check_hash=True, map_location="cpu")
        )  # as torchvision does
    if not path.is_file():
        raise FileNotFoundError(
            f"weights: {path} is not there. lpips_vgg needs torchvision's VGG16: download {published.url} to {kept}, "
            "or give its path as weights=…, or let lpips_vgg(download=True) fetch it (528 MB)"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and system errors alike: it cannot be read
        said = str(error).partition(". ")[0]
        raise ValueError(f"weights: got {path}, want a file of VGG16 as torchvision saves it ({said})") from error
    if not isinstance(state, dict):
        raise ValueError(f"weights: got {path} with {brief_kind(state)}, want VGG16's tensors by torchvision's names")
    return state


def _vgg_features(models: Any, state: dict[str, Tensor]) -> nn.Module:
    """The convolutions of VGG16 up to the last tap, with the weights in ``state``.

    On the device meta the layers that are not needed, nine tenths of the network, take neither memory nor time.
    """
    with torch.device("meta"):
        features: nn.Module = models.vgg16().features[: int(TAPS[-1]) + 1]
    prefix = "features."
    wanted = {name: tuple(value.shape) for name, value in features.state_dict().items()}
    found = {name: state[prefix + name] for name in wanted if isinstance(state.get(prefix + name), Tensor)}
    for name, shape in wanted.items():
        if name not in found or tuple(found[name].shape) != shape:
            got = f"of shape {tuple(found[name].shape)}" if name in found else "absent"
            raise ValueError(f"weights: got a file with {prefix}{name} {got}, want VGG16's, of shape {shape}")
    features.load_state_dict(found, assign=True)
    return features
