"""Codes of a data set, beside the identity of the tokenizer that wrote them."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import companion
from companion import CodeSet, TransformerPrior, check_identity, identity, tokenize
from companion.data import load


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


def some(codes=((0, 7), (3, 1)), labels=(0, 5), num_codes=8, tokenizer="a"):
    return CodeSet(torch.tensor(codes), torch.tensor(labels), num_codes, tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": ((0, 70_000), (3, 1)), "num_codes": 16}, "codes: got 0 to 70000, want 0 to 15"),
        ({"codes": ((0, -1), (3, 1))}, "codes: got -1 to 3, want 0 to 7"),
        ({"codes": ((0, 1.5), (3, 1))}, r"codes: got float32 of shape \(2, 2\), want int64"),
        ({"codes": (0, 1)}, r"codes: got int64 of shape \(2,\), want int64 of shape \(N, h, \*grid\)"),
        ({"codes": ()}, "codes: got float32"),
        ({"labels": (0, 1, 2)}, r"labels: got int64 of shape \(3,\), want int64 of shape \(2,\)"),
        ({"labels": (0.0, 1.0)}, "labels: got float32"),
        ({"labels": (0, -1)}, "labels: got -1 to 0, want 0 to"),
        ({"num_codes": 0}, "num_codes: got 0, want a whole number from 1"),
        ({"num_codes": 8.0}, "num_codes: got 8.0, want a whole number"),
        ({"num_codes": True}, "num_codes: got True, want a whole number"),
        ({"tokenizer": None}, "tokenizer: got None, want its identity, a string"),
    ],
)
def test_a_set_of_codes_that_is_none_cannot_be_made(change, message):
    some()
    with pytest.raises(ValueError, match=f"^{message}"):
        some(**change)


def test_what_is_no_tensor_is_no_set_of_codes():
    codes, labels = (torch.zeros(*shape, dtype=torch.int64, device="cpu") for shape in ((2, 2), (2,)))
    for wrong in ((codes.tolist(), labels), (codes, labels.tolist()), (codes.numpy(), labels)):
        with pytest.raises(ValueError, match="want a tensor, int64"):
            CodeSet(*wrong, 8, "a")
    with pytest.raises(ValueError, match="labels: got a tensor on meta, want it where codes is, on cpu"):
        CodeSet(codes, labels.to("meta"), 8, "a")


@pytest.mark.parametrize("indices", [[-1], [2], [0.5], [[0]], [], None, "a", [True, False]])
def test_a_batch_is_of_rows_that_are_there(indices):
    codes = some()
    assert codes.batch([1, 1])[0].tolist() == [[3, 1], [3, 1]]
    with pytest.raises(ValueError, match=r"^indices: got"):
        codes.batch(indices)


@pytest.mark.parametrize(("num_codes", "size"), [(1, 1), (256, 1), (257, 2), (2**15 + 1, 4), (2**31 + 1, 8)])
def test_a_code_takes_the_bytes_that_it_needs_and_none_overflows(num_codes, size, tmp_path):
    codes = some(((0, num_codes - 1), (num_codes // 2, 0)), num_codes=num_codes)
    codes.save(tmp_path / "c.safetensors")
    again = CodeSet.load(tmp_path / "c.safetensors")  # on the CPU
    assert torch.equal(again.codes, codes.codes.cpu())
    assert load_file(tmp_path / "c.safetensors")["codes"].element_size() == size
    assert torch.tensor([70_000]).to(torch.int16).item() == 4464  # which is what used to be written for K = 16


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "path: got .*, want a name that ends in .safetensors"),
        ("codes.pt", "path: got .*codes.pt', want a name that ends in .safetensors"),
        ("\0.safetensors", "path: got .*, want a name that ends in .safetensors"),
        ("folder.safetensors", "path: got .*folder.safetensors, which is a folder, want a file"),
    ],
)
def test_codes_are_saved_to_a_file_that_says_what_it_is(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(ValueError, match=f"^{message}"):
        some().save(name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]


def test_every_flipped_bit_and_every_cut_of_a_file_of_codes_is_noticed_or_harmless(tmp_path):
    codes, path = tokenize(tokenizer(), IMAGES), tmp_path / "c.safetensors"
    codes.save(path)
    content, generator, noticed = path.read_bytes(), np.random.default_rng(0), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a bit in the word "sha256" leaves a file that says it has no checksum
        for bit in generator.integers(0, 8 * len(content), 200):
            damaged = bytearray(content)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            try:
                again = CodeSet.load(path)
            except ValueError:
                noticed += 1
            else:
                assert torch.equal(again.codes, codes.codes)
                assert torch.equal(again.labels, codes.labels)
                assert (again.num_codes, again.tokenizer) == (codes.num_codes, codes.tokenizer)
    assert noticed > 190
    for length in generator.integers(0, len(content), 30):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"is (truncated or damaged|no safetensors file)"):
            CodeSet.load(path)


def test_older_files_still_load_say_that_they_have_no_checksum_and_are_looked_at(tmp_path):
    def older(codes, **about):
        labels = torch.zeros(len(codes), dtype=torch.int64, device="cpu")
        tensors = {"codes": torch.tensor(codes, dtype=torch.int16, device="cpu"), "labels": labels}
        about = {"format": "companion codes", "num_codes": 8, "tokenizer": "a"} | about
        about = {key: value for key, value in about.items() if value is not ...}
        save_file(tensors, path, metadata={"companion": json.dumps(about)})

    path = tmp_path / "c.safetensors"
    older([[1, 2]])
    with pytest.warns(UserWarning, match="carries no checksum"):
        assert CodeSet.load(path).codes.tolist() == [[1, 2]]
    for wrong, message in (
        (([[1, 9]],), "codes: got 1 to 9, want 0 to 7"),
        (([[1, -9]],), "codes: got -9 to 1"),
        (([1],), "codes: got int64 of shape"),
    ):
        older(*wrong)
        with (
            pytest.raises(ValueError, match=f"^path: .* holds no set of codes: {message}"),
            pytest.warns(UserWarning, match="checksum"),
        ):
            CodeSet.load(path)
    for about in ({"num_codes": "8"}, {"num_codes": ...}, {"tokenizer": ...}, {"num_codes": [8]}, {"tokenizer": 3}):
        older([[1, 2]], **about)
        with (
            pytest.raises(ValueError, match=r"^path: .* holds no set of codes"),
            pytest.warns(UserWarning, match="checksum"),
        ):
            CodeSet.load(path)
    companion.save(companion.Encoder(4), path)
    with pytest.raises(ValueError, match=r"^path: .* holds no set of codes"):
        CodeSet.load(path)
    with pytest.raises(ValueError, match=r"^path: .* is a folder"):
        CodeSet.load(tmp_path)


def test_identity_knows_the_levels_of_a_finite_scalar_quantizer():
    def with_levels(*levels):
        torch.manual_seed(0)
        encoder, decoder = companion.ResNetEncoder(1, 2, hidden=8), companion.ResNetDecoder(1, 2, hidden=8)
        return companion.VQVAE(encoder, companion.FiniteScalarQuantizer(levels), decoder)

    a, b = with_levels(2, 8), with_levels(8, 2)
    states = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in states)  # nothing there tells
    assert identity(a) == identity(with_levels(2, 8)) != identity(b)


def test_identity_is_that_of_the_shipped_tokenizers_for_ever():
    shipped = {name: identity(companion.pretrained(name)) for name in ("glyphs-vqvae", "mnist-rqvae")}
    assert shipped == {"glyphs-vqvae": "438a44d5d4c2", "mnist-rqvae": "157cfb23f00f"}


def test_tokenize_refuses_what_it_cannot_use():
    model = tokenizer()
    for wrong, message in (
        ((model, IMAGES.images), r"images: got a uint8 tensor of shape .*, want an ImageSet"),
        ((companion.Encoder(4), IMAGES), "tokenizer: got an Encoder, want a VQVAE"),
        ((None, IMAGES), "tokenizer: got None, want a module"),
        ((model, load("emoji", "test", size=8)), "images: got 3 channels, want 1, as the tokenizer's encoder"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenize(*wrong)
    with pytest.raises(ValueError, match="batch_size: got 0, want a whole number"):
        tokenize(model, IMAGES, batch_size=0)
    with pytest.raises(ValueError, match=r"codes_or_prior: got a uint8 tensor of shape .*, want a CodeSet or a prior"):
        check_identity(model, IMAGES.images)


def test_another_file_is_refused(tmp_path):
    save_file({"codes": torch.zeros(2, device="cpu")}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no set of codes"):
        CodeSet.load(tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"12345")
    with pytest.raises(ValueError, match="is no safetensors file"):
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
    history = companion.fit(prior, codes, validation=codes, epochs=5, batch_size=10, lr=3e-3, progress=False)
    assert history.last["loss"] < history.rows[0]["loss"]
    assert companion.priors.prior_bits(prior, codes.codes, codes.labels) == pytest.approx(
        history.last["validation_loss"] * 49 / torch.tensor(2.0).log().item(), rel=1e-4
    )


def a_prior(codes, **options):
    torch.manual_seed(0)
    return TransformerPrior(codes.num_codes, codes.grid, dim=8, layers=1, heads=2, **options)


def fitted(prior, codes, **options):
    return companion.fit(prior, codes, epochs=1, batch_size=10, lr=1e-2, progress=False, device="cpu", **options)


def test_a_conditional_prior_learns_its_labels_without_being_told():
    codes = tokenize(tokenizer(), IMAGES)
    by_default, told, wrong = (a_prior(codes, num_classes=10) for _ in range(3))
    before = by_default.sos.weight.detach().clone()
    history = fitted(by_default, codes, validation=codes)
    assert history == fitted(told, codes, validation=codes, objective=lambda prior, k, labels: prior(k, labels))
    assert torch.equal(by_default.sos.weight, told.sos.weight)
    used = codes.labels.unique()
    assert (by_default.sos.weight[used] != before[used]).any(1).all()  # the class's own vectors have moved
    fitted(wrong, codes, objective=lambda prior, k, labels: prior(k))  # what used to be done
    assert torch.equal(wrong.sos.weight[used], before[used])


def test_an_unconditional_prior_ignores_labels():
    codes = tokenize(tokenizer(), IMAGES)
    told = fitted(a_prior(codes), codes, objective=lambda prior, k, labels: prior(k))
    assert fitted(a_prior(codes), codes) == told


def test_a_conditional_prior_without_labels_is_refused_and_the_way_out_works():
    class Alone:
        def __init__(self, codes):
            self.codes = codes

        def __len__(self):
            return len(self.codes)

        def batch(self, indices, device):
            return (self.codes.batch(indices, device)[0],)

    codes = Alone(tokenize(tokenizer(), IMAGES))
    with pytest.raises(ValueError, match=r"train: got batches of codes alone, want codes and labels.*num_classes=10"):
        fitted(a_prior(codes.codes, num_classes=10), codes)
    fitted(a_prior(codes.codes, num_classes=10), codes, objective=lambda prior, codes: prior(codes))


def test_a_label_without_a_class_is_refused():
    codes = tokenize(tokenizer(), IMAGES)
    with pytest.raises(ValueError, match=r"labels: got .*, want 0 to 2"):
        fitted(a_prior(codes, num_classes=3), codes)


def test_codes_of_another_number_or_grid_are_refused_before_the_first_step():
    codes = tokenize(tokenizer(), IMAGES)
    more = CodeSet(codes.codes, codes.labels, 16, codes.tokenizer)
    smaller = CodeSet(codes.codes[:, 1:], codes.labels, 8, codes.tokenizer)
    for prior, options, message in (
        (a_prior(more), {}, "train: got codes with num_codes=8, want the 16 of the prior"),
        (a_prior(codes), {"validation": more}, "validation: got codes with num_codes=16, want the 8 of the prior"),
        (a_prior(codes), {"validation": smaller}, r"validation: got examples of shape \(6, 7\), want \(7, 7\) as"),
        (a_prior(codes, num_classes=3), {"validation": codes}, r"train\.labels: got 0 to \d+, want 0 to 2"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            fitted(prior, codes, **options)
        assert prior.tokenizer == ""
    vqvae = tokenizer()
    with pytest.raises(ValueError, match="validation: got codes with num_codes=16, want 8 as train has"):
        fitted(vqvae, codes, validation=more, objective=lambda model, k, labels: None)


def test_a_prior_of_another_tokenizer_does_not_learn_these_codes(tmp_path):
    codes = tokenize(tokenizer(), IMAGES)
    other = tokenize(tokenizer(seed=1), IMAGES)
    prior = a_prior(codes, tokenizer="BBB")
    with pytest.raises(ValueError, match=rf"train: got codes of .* '{codes.tokenizer}', want those of 'BBB'"):
        fitted(prior, codes, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    right = a_prior(codes, tokenizer=codes.tokenizer)
    fitted(right, codes, validation=codes)
    with pytest.raises(ValueError, match=rf"validation: got codes of .*'{other.tokenizer}', .* which the prior names"):
        fitted(right, codes, validation=other)
    unnamed = CodeSet(codes.codes, codes.labels, 8, "")
    with pytest.raises(ValueError, match="train: got codes of the tokenizer '', want"):
        fitted(right, unnamed)


def test_a_prior_that_names_no_tokenizer_takes_that_of_its_codes(tmp_path):
    model = tokenizer()
    codes, other = tokenize(model, IMAGES), tokenize(tokenizer(seed=1), IMAGES)
    prior = a_prior(codes)
    with pytest.raises(ValueError, match=r"validation: got codes of .* which train names"):
        fitted(prior, codes, validation=other)
    assert prior.tokenizer == ""
    fitted(prior, codes)
    check_identity(model, prior)
    companion.save(prior, tmp_path / "p.safetensors")
    check_identity(model, companion.load(tmp_path / "p.safetensors"))
    with pytest.raises(ValueError, match="train: got codes of the tokenizer"):
        fitted(prior, other)
