"""Codes of a data set, beside the identity of the tokenizer that wrote them."""

import pytest
import torch
from safetensors.torch import save_file

import companion
from companion import CodeSet, TransformerPrior, check_identity, identity, tokenize


def tokenizer(seed: int = 0, *, residual: bool = False) -> companion.VQVAE:
    torch.manual_seed(seed)
    quantizer = companion.EMAVectorQuantizer(8, 4, init="uniform")
    if residual:
        quantizer = companion.ResidualQuantizer(quantizer, depth=2)
    return companion.VQVAE(companion.ResNetEncoder(1, 4, hidden=8), quantizer, companion.ResNetDecoder(1, 4, hidden=8))


IMAGES = companion.data.load("glyphs", "train", size=30)


@pytest.mark.parametrize("residual", [False, True])
def test_codes_are_those_of_encode_for_any_batch_and_nothing_moves(residual, device):
    model = tokenizer(residual=residual).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes = tokenize(model, IMAGES, batch_size=7)
    assert torch.equal(codes.codes, model.encode(IMAGES.batch(range(30), device)[0]).cpu())
    assert torch.equal(codes.labels, IMAGES.labels)
    assert (len(codes), codes.num_codes) == (30, 8)
    assert codes.grid == ((7, 7, 2) if residual else (7, 7))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(tokenize(model, IMAGES, progress=True).codes, codes.codes)


def test_identity_is_that_of_the_weights():
    model = tokenizer()
    first = identity(model)
    assert first == identity(model.eval()) == identity(tokenizer())
    assert len(first) == 12
    assert identity(tokenizer(seed=1)) != first
    with torch.no_grad():
        model.quantizer.codebook[0, 0] += 1e-6
    assert identity(model) != first


def test_identity_outlives_a_file(tmp_path):
    companion.save(tokenizer(), tmp_path / "t.safetensors")
    assert identity(companion.load(tmp_path / "t.safetensors")) == identity(tokenizer())


def test_codes_are_saved_and_loaded_with_their_tokenizer(tmp_path):
    codes = tokenize(tokenizer(), IMAGES)
    codes.save(tmp_path / "codes.safetensors")
    again = CodeSet.load(tmp_path / "codes.safetensors")
    assert torch.equal(again.codes, codes.codes)
    assert again.codes.dtype == torch.int64
    assert torch.equal(again.labels, codes.labels)
    assert (again.num_codes, again.tokenizer) == (codes.num_codes, codes.tokenizer)
    assert (tmp_path / "codes.safetensors").stat().st_size < 30 * 49 * 2 + 1000


def test_another_file_is_refused(tmp_path):
    save_file({"codes": torch.zeros(2, device="cpu")}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no set of codes"):
        CodeSet.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"12345")
    with pytest.raises(ValueError, match="no whole safetensors file"):
        CodeSet.load(tmp_path / "broken.safetensors")


def test_codes_and_priors_of_another_tokenizer_are_refused_with_both_identities(tmp_path):
    mine, other = tokenizer(), tokenizer(seed=1)
    codes = tokenize(mine, IMAGES)
    prior = TransformerPrior(8, codes.grid, dim=8, layers=1, heads=2, tokenizer=codes.tokenizer)
    companion.save(prior, tmp_path / "p.safetensors")
    prior = companion.load(tmp_path / "p.safetensors")
    for fits in (codes, prior):
        check_identity(mine, fits)
        with pytest.raises(ValueError, match=f"{identity(other)}.*{identity(mine)}"):
            check_identity(other, fits)
    with pytest.raises(ValueError, match="no tokenizer by name"):
        check_identity(mine, TransformerPrior(8, codes.grid, dim=8, layers=1, heads=2))


def test_a_prior_is_fitted_to_codes():
    codes = tokenize(tokenizer(), IMAGES)
    torch.manual_seed(0)
    prior = TransformerPrior(8, codes.grid, dim=16, layers=1, heads=2, num_classes=10, tokenizer=codes.tokenizer)
    history = companion.fit(
        prior, codes, validation=codes, epochs=5, batch_size=10, lr=3e-3, progress=False,
        objective=lambda model, k, label: model(k, label),
    )  # fmt: skip
    assert history.last["loss"] < history.rows[0]["loss"]
    assert companion.priors.prior_bits(prior, codes.codes, codes.labels) == pytest.approx(
        history.last["validation_loss"] * 49 / torch.tensor(2.0).log().item(), rel=1e-4
    )
