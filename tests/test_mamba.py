"""Mamba-2: the mixer beside its equations and beside another library, what a position sees, sampling from a state."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import companion
from companion.backbones import (
    BidirectionalMamba2Block,
    BidirectionalMamba2Decoder,
    BidirectionalMamba2Encoder,
    Mamba2Block,
    Mamba2Decoder,
    Mamba2Encoder,
    Mamba2Mixer,
    ssd_recurrence,
)

SMALL = {"state": 5, "head_dim": 4}
FRAME = {"hidden": 8, "factor": 4, "size": (12, 16), **SMALL}


def mixer(**options) -> Mamba2Mixer:
    """One with weights of which none is zero or one."""
    torch.manual_seed(0)
    made = Mamba2Mixer(8, **SMALL | options).double()
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if name not in ("log_rate", "delta_bias"):
                weight.normal_(std=0.5)
    return made


def tokens(length: int = 11, n: int = 2) -> Tensor:
    return torch.randn(n, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# The mixer ---------------------------------------------------------------------------------------------------------


def written_out(made: Mamba2Mixer, x: Tensor) -> Tensor:
    """The mixer position by position, from its weights and the paper's equations."""
    inner, n, heads = made.inner, made.state, made.heads
    weights = made.to_inner.weight.split([inner, inner, n, n, heads])  # z, values, B, C, Δ
    z, values, b, c, delta = (x @ weight.T for weight in weights)
    row = torch.cat([values, b, c], -1)
    kernel = made.convolution.weight[:, 0]  # (channels, 4); the last is of the position itself
    convolved = torch.zeros_like(row)
    for t in range(row.shape[1]):
        for back in range(min(t + 1, kernel.shape[1])):
            convolved[:, t] += kernel[:, -1 - back] * row[:, t - back]
    convolved = convolved + made.convolution.bias
    values, b, c = (convolved * convolved.sigmoid()).split([inner, n, n], -1)
    values = values.reshape(*values.shape[:2], heads, inner // heads)
    delta = (delta + made.delta_bias).exp().add(1).log()  # (B, T, H)
    y, _ = ssd_recurrence(delta[..., None] * values, -made.log_rate.exp() * delta, b, c)
    y = (y + made.skip[:, None] * values).flatten(2) * z * z.sigmoid()
    y = y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt() * made.norm.weight
    return y @ made.to_out.weight.T


@pytest.mark.parametrize("options", [{}, {"conv": 1}, {"expand": 1, "head_dim": 2}, {"head_dim": 16, "conv": 7}])
def test_the_mixer_is_its_equations(options):
    made, x = mixer(**options), tokens()
    torch.testing.assert_close(made(x), written_out(made, x), atol=1e-10, rtol=0)


def test_shapes_and_number_of_weights_are_as_the_paper_counts_them():
    made = Mamba2Mixer(128)
    assert (made.inner, made.heads, made.head_dim, made.state) == (256, 4, 64, 64)
    count = {name: weight.numel() for name, weight in made.named_parameters()}
    assert count["to_inner.weight"] == 128 * (2 * 256 + 2 * 64 + 4)
    assert count["convolution.weight"] == 4 * (256 + 2 * 64)
    assert sum(count.values()) == 82_432 + 4 * 384 + 384 + 3 * 4 + 256 + 256 * 128
    assert made(torch.randn(2, 5, 128)).shape == (2, 5, 128)


def test_step_sizes_begin_log_uniform_and_rates_uniform():
    torch.manual_seed(0)
    made = Mamba2Mixer(1024, head_dim=1)  # 2,048 heads
    delta = functional.softplus(made.delta_bias)
    assert 1e-3 <= delta.min() < 1.02e-3
    assert 0.098 < delta.max() <= 0.1
    position = (delta.log() - math.log(1e-3)) / math.log(100)  # in [0, 1]
    assert position.mean().item() == pytest.approx(0.5, abs=0.03)
    assert position.var().item() == pytest.approx(1 / 12, abs=0.006)
    rate = made.log_rate.exp()
    assert 1 <= rate.min() < 1.05
    assert 15.95 < rate.max() <= 16
    assert rate.mean().item() == pytest.approx(8.5, abs=0.35)
    assert rate.var().item() == pytest.approx(15**2 / 12, rel=0.07)
    assert torch.equal(made.skip, torch.ones(2048))
    # as the docstring says: a head forgets half of its state within so many positions
    half = math.log(2) / torch.tensor([16 * 0.1, 1 * 1e-3])
    assert half.tolist() == pytest.approx([0.43, 693], rel=0.01)
    position_of_delta_itself = (delta - 1e-3) / 0.099  # the wrong version, uniform in Δ, would have mean ½ here
    assert position_of_delta_itself.mean().item() == pytest.approx(0.2065, abs=0.02)


def test_steps_give_what_forward_gives_and_keep_as_much_at_the_end_as_at_the_beginning():
    for made in (mixer(), mixer(conv=1), Mamba2Block(8, **SMALL).double()):
        x = tokens(70)  # more than a chunk
        inner = made.mixer if isinstance(made, Mamba2Block) else made
        expected = written_out(made, x) if made is inner else made(x)
        state, outputs, sizes = inner.new_state(2), [], set()
        for t in range(70):
            y, state = made.step(x[:, t], state)
            outputs.append(y)
            sizes.add((state.window.shape, state.state.shape))
        torch.testing.assert_close(torch.stack(outputs, 1), expected, atol=1e-9, rtol=0)
        torch.testing.assert_close(made(x), expected, atol=1e-9, rtol=0)
        assert len(sizes) == 1
        assert state.state.shape == (2, 4, 4, 5)


def test_a_step_that_forgets_the_window_of_the_convolution_is_wrong_from_the_second_position():
    made, x = mixer(), tokens()
    state, outputs = made.new_state(2), []
    for t in range(5):
        y, state = made.step(x[:, t], type(state)(made.new_state(2).window, state.state))  # the wrong version
        outputs.append(y)
    gaps = (torch.stack(outputs, 1) - made(x)[:, :5]).abs().amax((0, 2))
    assert gaps[0] < 1e-12
    assert bool((gaps[1:] > 1e-3).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_the_state_stays_in_float32(dtype):
    torch.manual_seed(0)
    made, x = Mamba2Mixer(8, **SMALL), torch.randn(2, 11, 8)
    exact = made(x)
    half = made.to(dtype)
    state = half.new_state(2)
    _, state = half.step(x[:, 0].to(dtype), state)
    assert (state.window.dtype, state.state.dtype) == (dtype, torch.float32)
    y = half(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), exact, atol=0.03, rtol=0.03)


def test_under_autocast_it_is_finite_and_near():
    torch.manual_seed(0)
    made, x = Mamba2Mixer(8, **SMALL), torch.randn(2, 70, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = made(x)
        y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), made(x), atol=0.03, rtol=0.03)
    assert all(weight.grad.isfinite().all() for weight in made.parameters())


# Beside transformers -----------------------------------------------------------------------------------------------

NAMES = {
    "to_inner.weight": "in_proj.weight", "convolution.weight": "conv1d.weight", "convolution.bias": "conv1d.bias",
    "delta_bias": "dt_bias", "log_rate": "A_log", "skip": "D", "norm.weight": "norm.weight",
    "to_out.weight": "out_proj.weight",
}  # fmt: skip


class InFloat64:
    """``torch``, with float64 under the name of float32: what a module converts to float32 keeps its digits."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> object:
        return getattr(torch, name)


@pytest.mark.parametrize("length", [1, 11, 70])
def test_outputs_and_gradients_are_those_of_transformers(length, monkeypatch):
    peer = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = pytest.importorskip("transformers").Mamba2Config(
        hidden_size=8, state_size=5, head_dim=4, num_heads=4, expand=2, conv_kernel=4, n_groups=1, chunk_size=16,
        use_bias=False, use_conv_bias=True, hidden_act="silu", layer_norm_epsilon=1e-5, num_hidden_layers=1,
    )  # fmt: skip
    ours, theirs = mixer(), peer.Mamba2Mixer(config, 0).double()
    weights = dict(ours.named_parameters())
    theirs.load_state_dict({NAMES[name]: weight.detach() for name, weight in weights.items()})
    x, weight = tokens(length), torch.randn(2, length, 8, dtype=torch.float64)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    y = ours(inputs[0])
    (y * weight).sum().backward()
    monkeypatch.setattr(peer, "torch", InFloat64())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    out = theirs(inputs[1])
    (out * weight).sum().backward()
    torch.testing.assert_close(y, out, atol=1e-10, rtol=0)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-10, rtol=1e-10)
    others = dict(theirs.named_parameters())
    for name, one in weights.items():
        torch.testing.assert_close(one.grad, others[NAMES[name]].grad, atol=1e-10, rtol=1e-10)


# What a position sees ----------------------------------------------------------------------------------------------


def seen(model: nn.Module, x: Tensor) -> Tensor:
    """(T, T): does the output at position t change with the input at position s? By gradients."""
    x = x.clone().requires_grad_()
    y = model(x)
    rows = []
    for t in range(y.shape[1]):
        (grad,) = torch.autograd.grad(y[:, t].square().sum(), x, retain_graph=True)
        rows.append(grad.abs().sum((0, 2)) > 0)
    return torch.stack(rows)


def test_a_block_sees_itself_and_the_past_and_a_bidirectional_one_sees_all():
    torch.manual_seed(0)
    everything = torch.ones(11, 11, dtype=torch.bool)
    assert torch.equal(seen(Mamba2Block(8, **SMALL).double(), tokens()), everything.tril())
    assert torch.equal(seen(BidirectionalMamba2Block(8, **SMALL).double(), tokens()), everything)


class NotTurnedBack(BidirectionalMamba2Block):
    """The wrong version: position t of the first direction is added to position T − 1 − t of the second."""

    def forward(self, x: Tensor) -> Tensor:
        return self.forwards(x) + self.backwards(x.flip(1))


def test_without_turning_back_a_position_gets_its_own_token_from_one_direction_only():
    """Both see all positions in a way, so a receptive field alone shows it in the first half only: the output at t sees
    0 … t, and T − 1 − t … T − 1, instead of all."""
    torch.manual_seed(0)
    right, wrong = BidirectionalMamba2Block(8, **SMALL).double(), NotTurnedBack(8, **SMALL).double()
    wrong.load_state_dict(right.state_dict())
    t, s = torch.arange(11)[:, None], torch.arange(11)
    assert torch.equal(seen(wrong, tokens()), (s <= t) | (s >= 10 - t))
    x = tokens()
    torch.testing.assert_close(right(x), right.forwards(x) + right.backwards(x.flip(1)).flip(1))
    assert (right(x) - wrong(x)).abs().max() > 0.1


def test_reversed_with_the_directions_exchanged_a_bidirectional_block_gives_the_reversed_output():
    torch.manual_seed(0)
    block, other = (BidirectionalMamba2Block(8, **SMALL).double() for _ in range(2))
    other.forwards.load_state_dict(block.backwards.state_dict())
    other.backwards.load_state_dict(block.forwards.state_dict())
    x = tokens()
    torch.testing.assert_close(other(x.flip(1)).flip(1), block(x))


def test_a_block_is_the_mixer_and_a_gated_mlp_each_after_a_norm_and_beside_a_skip():
    torch.manual_seed(0)
    block, x = Mamba2Block(8, **SMALL).double(), tokens()
    middle = x + block.mixer(functional.rms_norm(x, (8,)))
    torch.testing.assert_close(block(x), middle + block.mlp(functional.rms_norm(middle, (8,))))
    with torch.no_grad():
        block.mixer.to_out.weight.zero_()
        block.mlp.to_out.weight.zero_()
    assert torch.equal(block(x), x)
    both = BidirectionalMamba2Block(8, **SMALL).double()
    with torch.no_grad():
        for direction in (both.forwards, both.backwards):
            direction.mixer.to_out.weight.zero_()
            direction.mlp.to_out.weight.zero_()
    assert torch.equal(both(x), 2 * x)


# Encoders and decoders ---------------------------------------------------------------------------------------------

PAIRS = [(Mamba2Encoder, Mamba2Decoder), (BidirectionalMamba2Encoder, BidirectionalMamba2Decoder)]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
@pytest.mark.parametrize("options", [{}, {"kernel": 6}, {"num_blocks": 0}, {"factor": (2, 8)}])
def test_a_pair_makes_latents_and_images_of_the_sizes_asked_for(pair, options):
    encoder, decoder = pair[0](3, 5, **FRAME | options), pair[1](3, 5, last_conv=True, **FRAME | options)
    x = torch.rand(2, 3, 12, 16)
    rows, columns = options.get("factor", (4, 4))
    z = encoder(x)
    assert z.shape == (2, 5, 12 // rows, 16 // columns)
    assert decoder(z).shape == x.shape
    decoder(z).sum().backward()
    assert all(weight.grad is not None for model in (encoder, decoder) for weight in model.parameters())


def patches_seen(encoder: nn.Module) -> Tensor:
    """(h·w, h·w): does the latent at one position change with the patch at another?"""
    x = torch.rand(1, 3, 12, 16, dtype=torch.float64, requires_grad=True)
    z = encoder.double()(x).flatten(2)  # (1, 5, 12)
    rows = []
    for t in range(12):
        (grad,) = torch.autograd.grad(z[..., t].sum(), x, retain_graph=True)
        rows.append(functional.max_pool2d(grad.abs().sum(1), 4).flatten() > 0)
    return torch.stack(rows)


def test_a_latent_sees_earlier_patches_in_raster_order_and_in_both_directions_all():
    torch.manual_seed(0)
    everything = torch.ones(12, 12, dtype=torch.bool)
    assert torch.equal(patches_seen(Mamba2Encoder(3, 5, **FRAME)), everything.tril())
    assert torch.equal(patches_seen(BidirectionalMamba2Encoder(3, 5, **FRAME)), everything)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair[0].__name__)
def test_a_tokenizer_of_them_learns_and_is_the_same_after_loading(pair, tmp_path):
    torch.manual_seed(0)
    sizes = FRAME | {"num_blocks": 1}
    parts = pair[0](1, 4, **sizes), companion.VectorQuantizer(8, 4), pair[1](1, 4, **sizes)
    model, x = companion.VQVAE(*parts), torch.rand(8, 1, 12, 16).round()
    adam = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = model(x).loss
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert losses[-1] < 0.7 * losses[0]
    companion.save(model, tmp_path / "model.safetensors")
    again = companion.load(tmp_path / "model.safetensors")
    assert torch.equal(again.encode(x), model.encode(x))
    assert torch.equal(again.reconstruct(x), model.reconstruct(x))


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (lambda: Mamba2Mixer(8, head_dim=5), "head_dim: got 5, want a divisor of 2 · hidden, 16"),
        (lambda: Mamba2Encoder(head_dim=48), "head_dim: got 48"),
        (lambda: Mamba2Encoder(num_blocks=-1), "num_blocks: got -1"),
        (lambda: Mamba2Decoder(state=0), "state: got 0"),
        (lambda: Mamba2Encoder(size=30), "size: got height 30, want a multiple of the factor 4"),
        (lambda: Mamba2Mixer(8, **SMALL)(torch.randn(2, 5, 9)), r"x: got float32 of shape \(2, 5, 9\)"),
        (lambda: Mamba2Block(8, **SMALL)(torch.randn(2, 5, 8).double()), "x: got float64, want float32"),
        (
            lambda: Mamba2Mixer(8, **SMALL).step(torch.randn(2, 8), Mamba2Mixer(8, **SMALL).new_state(3)),
            r"state\.window: got float32 of shape \(3, 26, 3\), want .* \(2, 26, 3\)",
        ),
        (
            lambda: Mamba2Mixer(8, **SMALL).step(torch.randn(2, 8), torch.zeros(2, 4, 4, 5)),
            "state: got .* want a MambaState",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(build, says):
    with pytest.raises(ValueError, match=f"^{says}"):
        build()


@pytest.mark.parametrize(
    ("hidden", "heads", "head_dim"), [(128, 4, 64), (44, 2, 44), (48, 2, 48), (67, 67, 2), (8, 1, 16)]
)
def test_without_a_size_heads_are_as_large_as_fits_up_to_64(hidden, heads, head_dim):
    mixer = Mamba2Mixer(hidden, state=2)
    assert (mixer.heads, mixer.head_dim) == (heads, head_dim)
    assert mixer(torch.zeros(1, 3, hidden)).shape == (1, 3, hidden)
