"""VQVAE: its parts in a row, its terms by name, its codes."""

import pytest
import torch

import companion
from companion import VQVAE, FiniteScalarQuantizer, GumbelQuantizer, ResNetDecoder, ResNetEncoder, VectorQuantizer


def model(quantizer: torch.nn.Module | None = None, dim: int = 4, **options: float) -> VQVAE:
    torch.manual_seed(0)
    encoder, decoder = ResNetEncoder(1, dim, hidden=8, num_blocks=1), ResNetDecoder(1, dim, hidden=8, num_blocks=1)
    return VQVAE(encoder, quantizer or VectorQuantizer(16, dim), decoder, **options)


def test_output_is_encoder_quantizer_decoder_in_a_row():
    vqvae = model(quantizer_weight=2.0)
    x = torch.rand(3, 1, 12, 20)
    out = vqvae(x)
    quantized = vqvae.quantizer(vqvae.encoder(x))
    assert torch.equal(out.z_e, vqvae.encoder(x))
    assert torch.equal(out.z_q, quantized.z_q)
    assert torch.equal(out.indices, quantized.indices)
    assert torch.equal(out.reconstruction, vqvae.decoder(quantized.z_q))
    assert out.indices.shape == (3, 3, 5)
    assert out.losses.keys() == {"reconstruction", "codebook", "commitment"}
    torch.testing.assert_close(out.losses["reconstruction"], (out.reconstruction - x).square().mean())
    torch.testing.assert_close(
        out.loss, out.losses["reconstruction"] + 2 * (out.losses["codebook"] + 0.25 * out.losses["commitment"])
    )
    assert out.code_counts.tolist() == torch.bincount(out.indices.flatten(), minlength=16).tolist()


def test_encode_decode_reconstruct_agree_and_leave_no_graph():
    vqvae = model().eval()
    x = torch.rand(3, 1, 12, 12)
    codes = vqvae.encode(x)
    assert torch.equal(codes, vqvae(x).indices)
    assert torch.equal(vqvae.decode(codes), vqvae(x).reconstruction.clamp(0, 1))
    assert torch.equal(vqvae.reconstruct(x), vqvae.decode(codes))
    assert not vqvae.reconstruct(x).requires_grad


def test_encoding_moves_nothing_not_even_in_training_mode():
    for quantizer in (VectorQuantizer(16, 4), GumbelQuantizer(16, 4)):
        vqvae = model(quantizer).train()
        before = {name: value.clone() for name, value in vqvae.state_dict().items()}
        vqvae.encode(torch.rand(3, 1, 12, 12))
        assert all(torch.equal(value, before[name]) for name, value in vqvae.state_dict().items())


def test_decode_refuses_what_is_no_code():
    with pytest.raises(ValueError, match="indices: got 0 to 16, want 0 to 15"):
        model().decode(torch.tensor([[[0, 16], [1, 2]]]))


@pytest.mark.parametrize("name", ["forward", "encode", "reconstruct"])
@pytest.mark.parametrize(
    ("x", "says"),
    [
        (torch.zeros(2, 1, 12, 12, dtype=torch.uint8), r"x: got uint8, want .* x\.float\(\) / 255"),
        (255 * torch.rand(2, 1, 12, 12), r"x: got numbers from .* to 25\d.*, want images in \[0, 1\]"),
        (2 * torch.rand(2, 1, 12, 12) - 1, r"x: got numbers from -0\.9"),
        (torch.full((2, 1, 12, 12), torch.nan), "x: got numbers from nan to nan"),
        (torch.rand(12), r"x: got float32 of shape \(12,\)"),
        ([0.5], r"x: got \[0\.5\], want a tensor"),
    ],
)
def test_what_are_no_images_is_refused(name, x, says):
    with pytest.raises(ValueError, match=says):
        getattr(model(), name)(x)


def test_a_decoder_that_enlarges_by_another_factor_is_named():
    wrong = VQVAE(
        ResNetEncoder(1, 4, hidden=8, factor=4), VectorQuantizer(8, 4), ResNetDecoder(1, 4, hidden=8, factor=2)
    )
    with pytest.raises(ValueError, match=r"decoder: got \(2, 1, 6, 6\) from it, want the shape of x, \(2, 1, 12, 12\)"):
        wrong(torch.rand(2, 1, 12, 12))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, x: VQVAE(m.encoder, m.decoder, m.quantizer), "quantizer: got a ResNetDecoder"),
        (lambda m, x: VQVAE(m.encoder, VectorQuantizer(16, 5), m.decoder)(x), "encoder: it made latents of 4 channels"),
        (lambda m, x: VQVAE(m.encoder, m.quantizer, ResNetDecoder(1, 5, hidden=8))(x), "decoder: it does not take"),
        (lambda m, x: m.decode(torch.zeros(2, 3, 3, 2, dtype=torch.int64)), r"indices: got shape \(2, 3, 3, 2\)"),
        (lambda m, x: m.decode(m.encode(x).to("meta")), f"indices: .* on meta, want one on {torch.zeros(1).device}"),
    ],
)
def test_parts_and_indices_that_do_not_fit_are_named_as_the_caller_knows_them(call, says):
    with pytest.raises(ValueError, match=says):
        call(model(), torch.rand(2, 1, 12, 12))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="quantizer_weight: got -1"):
        model(quantizer_weight=-1)


def test_the_decoder_gets_the_code_and_the_encoder_the_decoders_gradient():
    """dL/dz_e is dL/dz_q, taken at z_q."""
    vqvae = model()
    x = torch.rand(2, 1, 12, 12)
    z_e = vqvae.encoder(x)
    z_q = vqvae.quantizer.decode(vqvae.quantizer.encode(z_e)).detach().requires_grad_()
    (at_z_q,) = torch.autograd.grad((vqvae.decoder(z_q) - x).square().mean(), z_q)
    out = vqvae(x)
    (at_z_e,) = torch.autograd.grad(out.losses["reconstruction"], out.z_e)
    torch.testing.assert_close(at_z_e, at_z_q)


@pytest.mark.parametrize(
    "quantizer",
    [
        VectorQuantizer(32, 4),
        VectorQuantizer(32, 4, estimator="rotation"),
        GumbelQuantizer(32, 4, anneal_steps=30),
        FiniteScalarQuantizer([4, 4, 3, 2]),
    ],
    ids=["vector", "rotation", "gumbel", "finite scalar"],
)
def test_it_learns_with_every_quantizer(quantizer):
    data = companion.data.load("glyphs", "train", size=128)
    vqvae = model(quantizer)
    history = companion.fit(vqvae, data, epochs=12, batch_size=32, lr=5e-3, progress=False)
    first, last = history.rows[0], history.last
    assert last["reconstruction"] < 0.8 * first["reconstruction"]
    assert 1 <= last["perplexity"] <= quantizer.num_codes
    assert 0 < last["usage"] <= 1


def test_perplexity_in_the_history_is_that_of_the_whole_epoch(device):
    """The mean of the batches' perplexities depends on the batch size."""
    data = companion.data.load("glyphs", "train", size=96).to(device)
    vqvae = model()
    with torch.no_grad():  # codes that many latents choose between
        z = vqvae.encoder(data.batch(range(96))[0])
        vqvae.quantizer.codebook.copy_(z.movedim(1, -1).reshape(-1, 4)[::293][:16])
    want = companion.metrics.CodeUsage(16).update(vqvae.encode(data.batch(range(96))[0])).perplexity
    rows = []
    for batch_size in (1, 48):
        frozen = companion.fit(
            vqvae, data, validation=data, epochs=1, batch_size=batch_size,
            optimizer=lambda p: torch.optim.SGD(p, lr=0.0), progress=False,
        )  # fmt: skip
        rows.append(frozen.last)
    for row in rows:
        assert row["perplexity"] == pytest.approx(want)
        assert row["validation_perplexity"] == pytest.approx(want)
    single = [companion.metrics.perplexity(vqvae(data.batch([i])[0]).code_counts) for i in range(96)]
    assert sum(single) / len(single) < 0.9 * want


def test_saved_and_loaded_it_is_the_same_model(tmp_path, device):
    vqvae = model(quantizer_weight=2.0).eval()
    companion.save(vqvae, tmp_path / "m.safetensors")
    again = companion.load(tmp_path / "m.safetensors").to(device).eval()
    x = torch.rand(2, 1, 12, 12)
    assert torch.equal(again(x).loss, vqvae(x).loss)
    assert torch.equal(again.encode(x), vqvae.encode(x))


def test_stopped_and_continued_is_the_run_that_never_stopped(tmp_path):
    data = companion.data.load("glyphs", "train", size=64)
    whole, parts = model(), model()
    options = {"batch_size": 16, "progress": False, "lr": 5e-3}
    expected = companion.fit(whole, data, epochs=4, **options)
    companion.fit(parts, data, epochs=2, run=tmp_path / "run", **options)
    got = companion.fit(parts, data, epochs=4, run=tmp_path / "run", **options)
    assert got.rows == expected.rows
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
