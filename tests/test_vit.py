"""Attention between patches, rotary positions, and the blocks of a vision transformer."""

import pytest
import torch
from torch import nn

from companion.backbones import SelfAttention, TransformerBlock, ViTEncoder, attention, axial_rotary
from companion.priors.transformer import causal_attention


def test_attention_is_a_mean_of_values_with_weights_that_sum_to_one():
    queries, keys = torch.randn(2, 2, 3, 5, 4, dtype=torch.float64)
    values = torch.eye(5, dtype=torch.float64).expand(2, 3, 5, 5)[..., :4]
    weights = torch.zeros(2, 3, 5, 5, dtype=torch.float64)
    for i in range(5):
        fit = torch.stack([(queries[:, :, i] * keys[:, :, j]).sum(-1) / 2 for j in range(5)], -1).exp()
        weights[:, :, i] = fit / fit.sum(-1, keepdim=True)
    torch.testing.assert_close(attention(queries, keys, values), weights[..., :4])
    assert not torch.allclose(attention(queries, keys, values), causal_attention(queries, keys, values))
    last = attention(queries, keys, values)[:, :, -1]  # which sees all with the mask, too
    torch.testing.assert_close(last, causal_attention(queries, keys, values)[:, :, -1])


@pytest.mark.parametrize("grid", [None, (2, 3)])
def test_the_fused_call_gives_what_the_plain_function_gives(grid):
    layer, tokens = SelfAttention(8, 2, grid).double(), torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
    queries, keys, values = (
        part.unflatten(2, (2, 4)).transpose(1, 2) for part in layer.to_qkv(tokens).chunk(3, dim=-1)
    )
    if grid is not None:
        queries, keys = axial_rotary(queries, grid), axial_rotary(keys, grid)
    plain = layer.to_out(attention(queries, keys, values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(tokens), plain)
    (by_hand,) = torch.autograd.grad(plain.square().sum(), tokens)
    (fused,) = torch.autograd.grad(layer(tokens).square().sum(), tokens)
    torch.testing.assert_close(fused, by_hand)


def test_a_block_is_two_residual_branches():
    block, tokens = TransformerBlock(8, 2).double(), torch.randn(2, 6, 8, dtype=torch.float64)
    middle = tokens + block.attention(block.norm1(tokens))
    torch.testing.assert_close(block(tokens), middle + block.mlp(block.norm2(middle)))
    nn.init.zeros_(block.attention.to_out.weight)
    nn.init.zeros_(block.attention.to_out.bias)
    nn.init.zeros_(block.mlp.to_out.weight)
    assert torch.equal(block(tokens), tokens)  # both branches closed


def test_without_positions_tokens_are_a_set():
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    tokens = torch.randn(2, 6, 8, dtype=torch.float64)
    block = TransformerBlock(8, 2).double()
    torch.testing.assert_close(block(tokens[:, order]), block(tokens)[:, order])
    turned = TransformerBlock(8, 2, grid=(2, 3)).double()
    assert not torch.allclose(turned(tokens[:, order]), turned(tokens)[:, order])


@pytest.mark.parametrize("positions", ["learned", "axial-rotary"])
def test_with_positions_an_encoder_knows_where_a_patch_stands(positions):
    torch.manual_seed(0)
    encoder = ViTEncoder(1, 3, hidden=8, heads=2, size=8, positions=positions).double()
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    exchanged = x.roll(4, dims=3)  # the columns of patches
    assert not torch.allclose(encoder(exchanged), encoder(x).roll(1, dims=3))
    if positions == "learned":
        nn.init.zeros_(encoder.embedded_positions)
        torch.testing.assert_close(encoder(exchanged), encoder(x).roll(1, dims=3))


def test_every_latent_sees_every_pixel():
    encoder = ViTEncoder(1, 3, hidden=8, num_blocks=1, size=16).double()
    x = torch.rand(1, 1, 16, 16, dtype=torch.float64, requires_grad=True)
    encoder(x)[..., 0, 0].sum().backward()
    assert (x.grad.abs() > 0).all()


def scores(place, grid, d=8):
    """Of one query and one key that stand at every position: (T, T)."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, d, generator=generator, dtype=torch.float64)
    t = grid[0] * grid[1]
    queries, keys = (place(one.expand(1, 1, t, d), grid) for one in (query, key))
    return (queries @ keys.transpose(2, 3))[0, 0]


def by_offset(table, grid):
    """For each offset in rows and columns, the scores of all pairs of tokens that far apart."""
    found = {}
    for i, row in enumerate(table.tolist()):
        for j, score in enumerate(row):
            offset = (i // grid[1] - j // grid[1], i % grid[1] - j % grid[1])
            found.setdefault(offset, []).append(score)
    return found


def spread(place, grid):
    return max(max(one) - min(one) for one in by_offset(scores(place, grid), grid).values())


def test_turned_scores_depend_on_the_offset_alone():
    grid = (3, 4)

    def added(x, grid):  # positions that are added instead
        return x + torch.randn(x.shape[2], x.shape[3], generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    def along_the_row_of_tokens(x, grid):  # as if the tokens were a text: the end of a row lies beside the next one's
        t = grid[0] * grid[1]
        return axial_rotary(x, (1, t))

    assert spread(axial_rotary, grid) < 1e-9
    assert spread(added, grid) > 1
    assert spread(along_the_row_of_tokens, grid) < 1e-9  # relative too, but of one axis:
    one_down = by_offset(scores(along_the_row_of_tokens, grid), grid)[1, 0][0]
    four_right = scores(along_the_row_of_tokens, (1, 12))[4, 0].item()
    assert one_down == pytest.approx(four_right)  # it cannot tell a row below from four columns
    apart = by_offset(scores(axial_rotary, (5, 5)), (5, 5))
    assert apart[1, 0][0] != pytest.approx(apart[0, 4][0])


def test_turning_keeps_lengths_and_leaves_the_first_token():
    x = torch.randn(2, 3, 12, 8, dtype=torch.float64)
    turned = axial_rotary(x, (3, 4))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert not torch.allclose(turned[:, :, 1], x[:, :, 1])


def test_half_of_the_channels_turn_with_the_row_and_half_with_the_column():
    x = torch.randn(1, 1, 12, 8, dtype=torch.float64)
    turned = axial_rotary(x, (3, 4))[0, 0].unflatten(0, (3, 4))
    x = x[0, 0].unflatten(0, (3, 4))
    assert torch.equal(turned[0, :, :4], x[0, :, :4])  # row 0: only columns turn
    assert torch.equal(turned[:, 0, 4:], x[:, 0, 4:])  # column 0: only rows
    pairs = torch.complex(x[2, 3, [0, 1]], x[2, 3, [2, 3]])  # the first of two pairs are channels 0 and 2
    angles = 2 * torch.tensor([1.0, 0.1], dtype=torch.float64)  # row 2, θ = 100^0 and 100^(−1/2)
    by_hand = pairs * torch.polar(torch.ones_like(angles), angles)
    torch.testing.assert_close(turned[2, 3, :4], torch.cat([by_hand.real, by_hand.imag]))
    pairs = torch.complex(x[2, 3, [4, 5]], x[2, 3, [6, 7]])
    by_hand = pairs * torch.polar(torch.ones_like(angles), 1.5 * angles)  # column 3
    torch.testing.assert_close(turned[2, 3, 4:], torch.cat([by_hand.real, by_hand.imag]))


def test_heads_and_grids_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="heads: got 3, want a divisor of hidden, 8"):
        TransformerBlock(8, 3)
    with pytest.raises(ValueError, match="heads: got 4 for 8 channels, 2 each, want multiples of 4 to turn"):
        ViTEncoder(hidden=8, heads=4, positions="axial-rotary")
    ViTEncoder(hidden=8, heads=4)
    with pytest.raises(ValueError, match=r"tokens: got float32 of shape \(1, 5, 8\), want .* \(B, 6, 8\)"):
        TransformerBlock(8, 2, (2, 3))(torch.rand(1, 5, 8))
    with pytest.raises(ValueError, match="x: got 6 channels a head, want a multiple of 4"):
        axial_rotary(torch.rand(1, 1, 6, 6), (2, 3))
    with pytest.raises(ValueError, match="positions: got 'sinusoidal', want one of 'learned', 'axial-rotary'"):
        ViTEncoder(positions="sinusoidal")
