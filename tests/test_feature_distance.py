"""The feature distance, and LPIPS."""

import copy
import math
from pathlib import Path
from typing import Any

import lpips
import pytest
import torch
from torch import Tensor, nn

from companion import _extras, data
from companion.losses import FeatureDistance, classifier_distance, feature_distance, lpips_vgg
from companion.losses import lpips as our_lpips


def small(channels: int = 3, *, inplace: bool = False, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.ReLU(inplace=inplace),
        nn.Conv2d(4, 5, 3, stride=2, padding=1),
        nn.ReLU(inplace=inplace),
    )


def pair(channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(2, channels, 6, 5, generator=generator) for _ in range(2))


def by_hand(network: nn.Sequential, cut: int, x_hat: Tensor, x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Equation 1 at one tap, position by position."""
    f_hat, f = network[:cut](x_hat), network[:cut](x)
    total = torch.zeros(len(x))
    for b in range(len(x)):
        for h in range(f.shape[2]):
            for w in range(f.shape[3]):
                u, v = (g[b, :, h, w] / (g[b, :, h, w].norm() + 1e-12) for g in (f_hat, f))
                total[b] += ((u - v) ** 2 * (1 if weight is None else weight)).sum() / (f.shape[2] * f.shape[3])
    return total


# Equation 1


def test_the_distance_is_equation_1_summed_over_taps_and_averaged_over_images() -> None:
    network, (x_hat, x) = small(), pair()
    wanted = by_hand(network, 1, x_hat, x) + by_hand(network, 3, x_hat, x)
    distance = FeatureDistance(network, ["0", "2"], epsilon=1e-6)
    torch.testing.assert_close(distance.per_image(x_hat, x), wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(distance(x_hat, x), wanted.mean(), rtol=1e-4, atol=1e-6)


def test_weights_weigh_the_squared_differences_of_their_tap() -> None:
    network, (x_hat, x) = small(), pair()
    heads = [torch.rand(4), torch.rand(5)]
    wanted = by_hand(network, 1, x_hat, x, heads[0]) + by_hand(network, 3, x_hat, x, heads[1])
    distance = FeatureDistance(network, ["0", "2"], heads, epsilon=1e-6)
    torch.testing.assert_close(distance.per_image(x_hat, x), wanted, rtol=1e-4, atol=1e-6)


def test_images_are_normalised_as_the_network_wants() -> None:
    network, (x_hat, x) = small(), pair()
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    shift, scale = (torch.tensor(one).reshape(3, 1, 1) for one in (mean, std))
    wanted = FeatureDistance(network, ["2"])((x_hat - shift) / scale, (x - shift) / scale)
    plain = FeatureDistance(network, ["2"])(x_hat, x)
    assert FeatureDistance(network, ["2"], mean=mean, std=std)(x_hat, x).item() == pytest.approx(
        wanted.item(), rel=1e-5
    )
    assert plain.item() != pytest.approx(wanted.item(), rel=1e-2)


def test_grey_images_are_repeated_only_if_that_is_stated() -> None:
    x_hat, x = pair(channels=1)
    distance = FeatureDistance(small(), ["2"], repeat_grey=True)
    three = distance(x_hat.expand(-1, 3, -1, -1), x.expand(-1, 3, -1, -1))
    assert distance(x_hat, x).item() == three.item() > 0
    with pytest.raises(ValueError, match="x_hat: got 1 channel, want 3"):
        FeatureDistance(small(), ["2"])(x_hat, x)


def test_of_features_it_is_the_sum_over_taps_of_means_over_positions() -> None:
    """Worked out: at each position two vectors of length 1, apart by 0, √2 or 2."""
    right, up, long = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 9.0]]).reshape(3, 2, 1, 1)

    def tap(*positions: Tensor) -> Tensor:
        return torch.cat(positions, 2)[None]  # (1, 2, 1, w)

    features_hat, features = [tap(right, up, long), tap(-up)], [tap(up, up, up), tap(up)]
    distance = feature_distance(features_hat, features, epsilon=1e-6)
    assert distance.tolist() == pytest.approx([(2 + 0 + 0) / 3 + 4])
    assert feature_distance(features, features_hat, epsilon=1e-6).tolist() == pytest.approx(distance.tolist())
    heads = [torch.tensor([3.0, 5.0]), torch.tensor([7.0, 0.5])]
    assert feature_distance(features_hat, features, heads, epsilon=1e-6).tolist() == pytest.approx([8 / 3 + 2])
    with pytest.raises(
        ValueError, match="features_hat: got 1 of them, want a sequence of tensors, 2, one for each tap"
    ):
        feature_distance(features_hat[:1], features)
    with pytest.raises(ValueError, match=r"features_hat\[1\]: got shape \(1, 2, 1, 3\), want that of features\[1\]"):
        feature_distance([features_hat[0]] * 2, features)
    with pytest.raises(ValueError, match=r"features\[1\]: got float32 of shape \(2, 2, 1, 1\), want .* \(1, C"):
        feature_distance(features_hat, [features[0], features[1].expand(2, -1, -1, -1)])


def test_features_as_short_as_epsilon_are_divided_by_more_than_their_length() -> None:
    f = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1)
    assert feature_distance([f], [0 * f], epsilon=5.0).item() == pytest.approx(0.5)
    assert feature_distance([f], [0 * f]).item() == pytest.approx(1)
    half = feature_distance([f.bfloat16()], [0 * f.bfloat16()], epsilon=5.0)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(0.5)


# Its gradient


def test_equal_images_are_at_distance_0_with_gradient_0() -> None:
    _, x = pair()
    x_hat = x.clone().requires_grad_()
    distance = FeatureDistance(small(), ["1", "3"])(x_hat, x)
    distance.backward()
    assert distance.item() == 0
    assert x_hat.grad.abs().max() == 0


def test_features_that_are_all_zero_give_a_finite_gradient() -> None:
    """As those of black pixels under a convolution without bias. A plain square root makes NaN of them."""
    _, x = pair()
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False))
    x[..., 3:, :] = 0  # black below
    for other in (x, pair(seed=1)[0], 0 * x):
        x_hat = other.clone().requires_grad_()
        FeatureDistance(network, ["0"])(x_hat, x).backward()
        assert x_hat.grad.isfinite().all()
    x_hat = x.clone().requires_grad_()
    features, wanted = network(x_hat), network(x).detach()
    wrong, target = (f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10) for f in (features, wanted))
    (gradient,) = torch.autograd.grad((wrong - target).square().mean(), x_hat)
    assert gradient.isnan().any()


def test_features_that_a_relu_made_zero_are_at_a_distance_from_others_and_give_a_finite_gradient() -> None:
    network, (x_hat, x) = small(), pair()
    with torch.no_grad():
        network[2].bias.fill_(-1.0)  # little passes the second ReLU
        network[2].bias[0] = -x.mean()
    for one, other in ((x_hat, x), (0 * x, x), (x, 0 * x)):
        one = one.clone().requires_grad_()
        distance = FeatureDistance(network, ["3"])(one, other)
        distance.backward()
        assert one.grad.isfinite().all()
        assert (network(other).abs().sum(1) == 0).any()


def test_the_gradient_is_right_in_float64() -> None:
    x_hat, x = (one.double() for one in pair())
    distance = FeatureDistance(small().double(), ["0", "2"], mean=(0.5,), std=(0.5,)).double()
    assert distance(x_hat, x).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda x_hat: distance(x_hat, x), x_hat.requires_grad_())


def test_the_network_learns_nothing_and_the_gradient_reaches_x_hat() -> None:
    x_hat, x = pair()
    distance = FeatureDistance(small(), ["2"])
    distance(x_hat.requires_grad_(), x).backward()
    assert x_hat.grad.abs().sum() > 0
    assert [p.requires_grad for p in distance.parameters()] == [False] * 4


def test_the_callers_network_stays_as_it_was() -> None:
    network = small().train()
    before = copy.deepcopy(network.state_dict())
    distance = FeatureDistance(network, ["0", "3"])
    distance(*pair())
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in [*network.modules(), *distance.modules()])


def test_the_network_stays_in_eval_mode_and_its_statistics_stand_still() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5))
    distance = nn.Sequential(FeatureDistance(network, ["1", "2"])).train()[0]
    assert distance.training
    assert not any(module.training for module in distance.network.modules())
    x_hat, x = pair()
    first = distance(x_hat, x)
    assert torch.equal(distance(x_hat, x), first)  # no dropout
    assert distance.network[1].num_batches_tracked == 0


def test_hooks_are_removed_after_an_error_too() -> None:
    distance = FeatureDistance(small(), ["0"])
    with pytest.raises(ValueError, match="x_hat: got 2 channels, want 3"):
        distance(torch.rand(1, 2, 6, 6), torch.rand(1, 2, 6, 6))
    assert not any(module._forward_hooks for module in distance.modules())


def test_a_layer_that_works_in_place_does_not_change_the_tap_before_it() -> None:
    """A hook that keeps the output itself, as the proof, holds what the ReLU made of it."""
    x_hat, x = pair()
    taps = ["0", "1", "2"]
    wanted = FeatureDistance(small(), taps)(x_hat, x)
    distance = FeatureDistance(small(inplace=True), taps)
    got = distance(x_hat.requires_grad_(), x)
    got.backward()
    assert got.item() == wanted.item()
    kept: list[Tensor] = []
    network = small(inplace=True)
    network[0].register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    network(x)
    assert kept[0].min() == 0 > small()[0](x).min()


# Precision


def test_nothing_is_computed_in_half_precision(autocast: Any) -> None:
    x_hat, x = pair()
    distance = FeatureDistance(small(), ["1", "3"])
    wanted = distance(x_hat, x)
    with autocast():
        assert distance(x_hat, x).item() == wanted.item()
        half = distance(x_hat.bfloat16(), x)  # a reconstruction as autocast makes it
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(distance(x_hat.bfloat16().float(), x).item(), rel=1e-6)


def test_features_of_a_network_in_half_precision_are_compared_in_float32() -> None:
    x_hat, x = pair()
    network = small().bfloat16()
    distance = FeatureDistance(network, ["2"])(x_hat.bfloat16(), x.bfloat16())
    assert distance.dtype == torch.float32
    assert distance.item() == pytest.approx(FeatureDistance(small(), ["2"])(x_hat, x).item(), rel=0.1)
    with pytest.raises(ValueError, match=r"x_hat: got float64, want float32 as the network is: x_hat.to"):
        FeatureDistance(small(), ["2"])(x_hat.double(), x.double())


# Taps


def test_an_unknown_tap_is_refused_with_the_names_that_are_nearest() -> None:
    network = nn.ModuleDict({"encoder": small(), "decoder": small()})
    with pytest.raises(ValueError, match=r"taps: got 'encoder.7', want names of layers .* such as 'encoder\.\d'"):
        FeatureDistance(network, ["encoder.7"])
    for wrong in ([], "0", ["0", "0"], [0], 3):
        with pytest.raises(ValueError, match="taps: got"):
            FeatureDistance(small(), wrong)


class Odd(nn.Module):
    """Layers that run twice, never, and give two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.two = nn.ReLU(), nn.ReLU(), nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.twice(self.twice(x)))


@pytest.mark.parametrize(
    ("tap", "message"), [("twice", "ran 2 times"), ("never", "ran 0 times"), ("two", "gave a tuple, want layers with")]
)
def test_a_tap_without_one_tensor_a_pass_is_refused(tap: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"taps: got '{tap}', which {message}"):
        FeatureDistance(Odd(), [tap])(*pair())


def test_weights_of_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"weights\[0\]: got float32 of shape \(3,\), want .* \(4,\)"):
        FeatureDistance(small(), ["0"], [torch.ones(3)])(*pair())
    with pytest.raises(ValueError, match=r"weights: got a list, want None or 2 tensors|weights: got \[tensor"):
        FeatureDistance(small(), ["0", "2"], [torch.ones(4)])
    with pytest.raises(ValueError, match="weights: got -1 to 1"):
        FeatureDistance(small(), ["0"], [torch.tensor([1.0, 1, 1, -1])])
    with pytest.raises(ValueError, match="x_hat: got 3 channels, want 2 as mean and std have"):
        FeatureDistance(small(), ["0"], mean=(0.5, 0.5))(*pair())


# The course's classifiers


def test_beside_a_shift_or_darker_images_a_classifier_finds_blur_worse_than_mse_does() -> None:
    x = data.load("glyphs", "test", size=64).batch(range(64))[0]
    blurred = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    shifted = x.roll(1, dims=3)  # by one pixel
    distance = classifier_distance("glyphs")
    for other in (shifted, 0.5 * x):
        in_pixels = (blurred - x).square().mean() / (other - x).square().mean()
        assert distance(blurred, x) / distance(other, x) > 1.5 * in_pixels
    assert distance.taps == ("0", "1", "2", "3", "4")
    assert distance(3 * x - 1, x) > 0  # a reconstruction may leave [0, 1]


def test_a_classifier_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="data: got 'photos', want one of"):
        classifier_distance("photos")


# LPIPS


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    """LPIPS of the package ``lpips``: its heads, and a VGG16 with random weights."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        model = lpips.LPIPS(net="vgg", pretrained=True, pnet_rand=True, verbose=False)
    with torch.no_grad():
        for parameter in model.net.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(-0.1, 0.1)  # biases that count
    return model


@pytest.fixture(scope="module")
def vgg_file(theirs: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of its network in a file as torchvision saves them."""
    state = {f"features.{name.partition('.')[2]}": value.cpu() for name, value in theirs.net.state_dict().items()}
    for i, (rows, columns) in {0: (4096, 25088), 3: (4096, 4096), 6: (1000, 4096)}.items():
        state |= {f"classifier.{i}.weight": torch.zeros((), device="cpu").expand(rows, columns)}  # one number on disk
        state |= {f"classifier.{i}.bias": torch.zeros(rows, device="cpu")}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(state, path)
    return path


@pytest.mark.parametrize(("size", "channels"), [(32, 3), (41, 3), (32, 1)])
def test_lpips_is_that_of_the_package_in_value_and_gradient(
    theirs: nn.Module, vgg_file: Path, size: int, channels: int, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(3, channels, size, size, generator=generator)
    x_hat = (x + 0.2 * torch.randn(x.shape, generator=generator)).requires_grad_()
    ours, theirs = lpips_vgg(vgg_file).to(device).train(), theirs.to(device)
    got, wanted = ours.per_image(x_hat, x), theirs(x_hat, x, normalize=True).flatten()
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
    assert got.std() > 0
    gradients = [torch.autograd.grad(value.sum(), x_hat)[0] for value in (got, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3 * gradients[1].abs().max().item())


def test_images_in_0_to_1_without_their_scaling_would_be_another_number(
    theirs: nn.Module, vgg_file: Path, device: torch.device
) -> None:
    x_hat, x = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    ours = lpips_vgg(vgg_file).to(device)(x_hat, x).item()
    assert ours != pytest.approx(theirs.to(device)(x_hat, x, normalize=False).mean().item(), rel=1e-2)


def test_lpips_of_equal_images_is_0_with_gradient_0_also_where_no_feature_is_left(vgg_file: Path) -> None:
    distance, x = lpips_vgg(vgg_file).cpu(), torch.rand(1, 3, 32, 32, device="cpu")
    for bias in (0.0, -1e3):  # with the second nothing passes the last ReLU
        distance.network[28].bias.data.fill_(bias)
        x_hat = x.clone().requires_grad_()
        value = distance(x_hat, x)
        value.backward()
        assert value.item() == 0
        assert x_hat.grad.abs().max() == 0


def test_a_file_that_is_not_there_is_named_with_its_address_and_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    with pytest.raises(FileNotFoundError) as caught:
        lpips_vgg()
    message = str(caught.value)
    assert f"{place} is not there" in message
    assert "https://download.pytorch.org/models/vgg16-397923af.pth" in message
    assert f"to {place}" in message
    assert "download=True" in message
    with pytest.raises(FileNotFoundError, match=r"weights: .*nowhere.pth is not there"):
        lpips_vgg(tmp_path / "nowhere.pth")
    assert not place.exists()  # nothing was fetched


def test_a_file_where_torch_hub_keeps_it_is_found(
    theirs: nn.Module, vgg_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(vgg_file.read_bytes())
    state = lpips_vgg().network.state_dict()
    assert torch.equal(state["28.weight"].cpu(), theirs.net.slice5[-2].weight.detach().cpu())


def test_only_when_asked_the_file_is_fetched_by_torchvision(
    vgg_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    asked: list[tuple[str, str]] = []

    def fetch(url: str, dst: str, hash_prefix: str | None = None, progress: bool = True) -> None:
        asked.append((url, str(hash_prefix)))
        Path(dst).write_bytes(vgg_file.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(FileNotFoundError):
        lpips_vgg()
    assert asked == []
    assert lpips_vgg(download=True).taps == our_lpips.TAPS
    assert asked == [("https://download.pytorch.org/models/vgg16-397923af.pth", "397923af")]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3, device="cpu")}, tmp_path / "grey.pth")
    with pytest.raises(ValueError, match=r"features.0.weight of shape \(64, 1, 3, 3\), want VGG16's, of shape \(64, 3"):
        lpips_vgg(tmp_path / "grey.pth")
    torch.save({}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match=r"features.0.weight absent"):
        lpips_vgg(tmp_path / "empty.pth")
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="with a list, want VGG16's tensors"):
        lpips_vgg(tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    with pytest.raises(ValueError, match=r"weights: got .*text.pth, want a file of VGG16"):
        lpips_vgg(tmp_path / "text.pth")


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> Any:
        if module == "lpips":
            raise ModuleNotFoundError("No module named 'lpips'", name="lpips")
        return real(module)

    real = _extras.importlib.import_module
    monkeypatch.setattr(_extras.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r"lpips_vgg needs lpips: .*\[lpips\]"):
        lpips_vgg()


def test_two_taps_sum_and_do_not_average() -> None:
    x_hat, x = pair()
    apart = [FeatureDistance(small(), [tap])(x_hat, x).item() for tap in ("1", "3")]
    assert FeatureDistance(small(), ["1", "3"])(x_hat, x).item() == pytest.approx(math.fsum(apart), rel=1e-6)


def test_images_of_another_range_or_with_other_channels_than_the_network_wants_are_refused():
    x_hat, x = pair()
    normalised = FeatureDistance(small(), ["1"], mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    with pytest.raises(ValueError, match=r"x: got numbers from .* to 2\d\d.*, want images in about \[0, 1\]: x / 255"):
        normalised(x_hat * 255, x * 255)
    assert FeatureDistance(small(), ["1"], mean=(120.0,), std=(60.0,))(x_hat * 255, x * 255) > 0
    grey = pair(channels=1)
    with pytest.raises(ValueError, match="x_hat: got 1 channel, want 3 as mean and std have: repeat_grey=True"):
        normalised(*grey)
    with pytest.raises(ValueError, match="x_hat: got 1 channel, want 3 as the network takes: repeat_grey=True"):
        FeatureDistance(small(), ["1"])(*grey)
    with pytest.raises(ValueError, match=r"x_hat: got 3 channels, want 1 as the network takes$"):
        FeatureDistance(small(1), ["1"])(x_hat, x)


def test_a_classifiers_distance_refuses_originals_in_0_to_255_and_takes_what_a_decoder_overshoots() -> None:
    distance, x = classifier_distance("glyphs"), torch.rand(2, 1, 28, 28, device="cpu")
    assert distance(2 * x - 0.5, x) > 0
    for x_hat in (x, 255 * x):
        with pytest.raises(ValueError, match=r"x: got numbers from .*, want images in about"):
            distance(x_hat, 255 * x)
