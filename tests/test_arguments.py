"""The helper behind every message "argument: got …, want …"."""

import math
import re
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from companion import _arguments as arguments
from companion._arguments import (
    check_about_unit,
    check_available,
    check_between,
    check_channels_first,
    check_choice,
    check_codes,
    check_decoded,
    check_device,
    check_finite,
    check_fits,
    check_flag,
    check_float_type,
    check_generator,
    check_given,
    check_images,
    check_instance,
    check_module,
    check_number,
    check_place,
    check_rebuilt,
    check_same_device,
    check_same_shape,
    check_size,
    check_sizes,
    check_tensor,
    check_unit_range,
    check_weights,
    check_whole,
    checks_values,
    decoded,
    encoded,
    judged,
    unchecked_values,
)
from companion.losses import PatchDiscriminator

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.fractions(),
    st.text(),
    st.lists(st.integers() | st.floats(), max_size=3),
    st.builds(torch.rand, st.integers(0, 3)),
    st.sampled_from([10**5000, -(10**400), np.float32("nan"), np.int64(3), np.bool_(True), object(), nn.Identity()]),
)
FORM = re.compile(r"argument: got .+, want .+")


def refusal(check, *args, **options) -> str:
    """The message of the ValueError, which must have the project's form, or nothing."""
    try:
        check("argument", *args, **options)
    except ValueError as error:
        message = str(error)
    else:
        return ""
    assert FORM.fullmatch(message), message
    return message


@given(ANYTHING)
def test_whatever_comes_is_taken_or_refused_in_one_line_of_the_one_form(value) -> None:
    for check, options in (
        (check_whole, {"most": 9}),
        (check_size, {}),
        (check_sizes, {"length": 2}),
        (check_number, {"least": 0, "below": 1}),
        (check_device, {}),
        (check_flag, {}),
        (check_choice, {"options": ("one", "two")}),
        (check_tensor, {"shape": ("B", "*spatial"), "finite": True}),
        (check_images, {}),
        (check_codes, {"num_codes": 4}),
        (check_module, {}),
        (check_instance, {"kind": bytes, "want": "bytes"}),
    ):
        assert len(refusal(check, value, **options)) < 200


@given(st.integers(-(10**30), 10**30), st.integers(-9, 9), st.integers(0, 9))
def test_a_whole_number_is_taken_just_where_it_lies_between_its_limits(value, least, more) -> None:
    taken = not refusal(check_whole, value, least=least, most=least + more)
    assert taken == (least <= value <= least + more)


def test_a_whole_number_is_no_bool_no_float_and_may_be_numpys() -> None:
    check_whole("argument", np.int32(3))
    check_whole("argument", -3, least=None)
    assert refusal(check_whole, True) == "argument: got True, want a whole number of at least 1"
    assert refusal(check_whole, 2.0) == "argument: got 2.0, want a whole number of at least 1"
    assert refusal(check_whole, 0, most=4) == "argument: got 0, want a whole number from 1 to 4"
    assert refusal(check_whole, 5, least=None, most=4) == "argument: got 5, want a whole number of at most 4"


def test_a_size_that_no_memory_holds_is_refused_before_an_allocator_is_asked() -> None:
    check_size("argument", 2**24)
    assert refusal(check_size, 10**12) == "argument: got 1000000000000, want a whole number from 1 to 16777216"
    assert "a whole number of" in refusal(check_size, 10**5000)


@pytest.mark.parametrize("wrong", [3, "33", [], [1.0, 2], [True, 1], [0, 1], [1, 10**12], {1, 2}, None, [[1], [2]]])
def test_sizes_are_a_sequence_of_whole_numbers(wrong) -> None:
    check_sizes("argument", [1, 2])
    check_sizes("argument", torch.Size([1, 2]))
    check_sizes("argument", (np.int64(1),))
    assert "want a sequence of whole numbers from 1 to" in refusal(check_sizes, wrong)
    assert "want a sequence of 2 whole numbers" in refusal(check_sizes, [1, 2, 3], length=2)
    assert not refusal(check_sizes, [], length=0)


@given(st.floats() | st.integers() | st.fractions(), st.floats(-2, 0), st.floats(0, 2))
def test_a_number_is_taken_just_where_it_is_finite_and_lies_between_its_limits(value, low, high) -> None:
    closed = not refusal(check_number, value, least=low, most=high)
    assert closed == (low <= value <= high)
    opened = not refusal(check_number, value, above=low, below=high)
    assert opened == (low < value < high)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 10**400, True, "1", None, 1j, torch.tensor(1.0)])
def test_what_is_no_finite_number_is_refused(wrong) -> None:
    """NaN passes every ``x < 0``: the wrong version of this check."""
    for right in (1, -2.5, np.float32(1), Fraction(1, 3), 0):
        check_number("argument", right)
    assert "want a finite number" in refusal(check_number, wrong)
    assert not math.nan < 0


def test_limits_stand_in_the_message() -> None:
    assert refusal(check_number, 2, least=0, below=1) == (
        "argument: got 2, want a finite number, at least 0 and less than 1"
    )
    assert refusal(check_choice, "three", ("one", "two")) == "argument: got 'three', want one of 'one', 'two'"


@pytest.mark.parametrize("wrong", [0, 1, "False", None, np.bool_(True), torch.tensor(True)])
def test_a_flag_is_true_or_false(wrong) -> None:
    check_flag("argument", False)
    for device in ("cpu", "cuda:1", torch.device("meta")):
        check_device("argument", device)
    assert "want a torch.device or its name" in refusal(check_device, "no such thing")
    assert "want True or False" in refusal(check_flag, wrong)


def test_a_tensor_has_the_type_and_the_axes_that_are_asked_for() -> None:
    x = torch.rand(2, 8, 3, 4)
    for shape in (None, (2, 8, 3, 4), ("B", 8, "H", "W"), ("B", 8, "*spatial"), ("*all",), ("B", "*rest", 4)):
        check_tensor("argument", x, shape=shape)
    check_tensor("argument", torch.rand(2, 8), shape=("B", 8, "*spatial"))
    for shape in (("B", 7, "*spatial"), ("B", 8), ("B", "C", "H", "W", "D", "*rest"), (3, "*rest"), ()):
        assert "float32 of shape (2, 8, 3, 4)" in refusal(check_tensor, x, shape=shape)
    assert refusal(check_tensor, torch.rand(3), shape=("B", 2)) == (
        "argument: got float32 of shape (3,), want floating point of shape (B, 2)"
    )
    assert "want int64" in refusal(check_tensor, x, dtype=torch.int64)


@pytest.mark.parametrize(
    ("got", "shape", "says"),
    [
        ((0, 7, 7), ("B", 7, 7), "want floating point of shape (B, 7, 7) with B at least 1"),
        ((0, 0), ("N", "F"), "want floating point of shape (N, F) with N and F at least 1"),
        ((0, 2), ("B", "*axes"), "want floating point of shape (B, *axes) and no axis of length 0"),
        ((0, 6, 7), ("B", 7, 7), "want floating point of shape (B, 7, 7)"),
    ],
)
def test_the_error_of_an_empty_batch_says_that_it_is_empty(got, shape, says) -> None:
    assert refusal(check_tensor, torch.rand(got), shape=shape) == f"argument: got float32 of shape {got}, {says}"


@pytest.mark.parametrize("shape", [("B",), ("B", "*rest"), ("*rest",), ("*rest", "B")])
def test_a_named_axis_is_at_least_one_long(shape) -> None:
    assert refusal(check_tensor, torch.empty(0), shape=shape)
    assert not refusal(check_tensor, torch.empty(0), shape=(0,))
    assert not refusal(check_tensor, torch.empty(0))


@pytest.mark.parametrize(
    "wrong", [[1.0], np.zeros(2), None, torch.zeros(2).to_sparse(), torch.zeros(2, dtype=torch.complex64)]
)
def test_what_is_no_dense_tensor_of_real_numbers_is_refused(wrong) -> None:
    assert refusal(check_tensor, wrong, finite=True)


@given(st.lists(st.floats(width=32), min_size=1, max_size=20), st.sampled_from([torch.float32, torch.float64]))
def test_one_number_that_is_not_finite_is_found_anywhere(values, dtype) -> None:
    x = torch.tensor(values, dtype=dtype)
    wrong = refusal(check_finite, x)
    assert bool(wrong) != bool(x.isfinite().all())
    if wrong:
        assert f"{int(x.isnan().sum())} NaN and {int(x.isinf().sum())} infinite" in wrong


def test_values_between_limits_and_codes_are_looked_at_at_both_ends() -> None:
    check_between("argument", torch.tensor([0.0, 1.0]), 0, 1)
    assert refusal(check_between, torch.tensor([0.0, 1.5]), 0, 1) == "argument: got 0 to 1.5, want 0 to 1"
    assert "nan" in refusal(check_between, torch.tensor([0.0, math.nan]), 0, 1)
    check_codes("argument", torch.tensor([[0, 7]]), 8)
    assert refusal(check_codes, torch.tensor([-1, 8]), 8) == "argument: got -1 to 8, want 0 to 7"
    assert refusal(check_codes, torch.tensor([2**40]), 2**24) == (
        "argument: got 1099511627776 to 1099511627776, want 0 to 16777215"  # every digit, unlike 1.67772e+07
    )
    assert "int32" in refusal(check_codes, torch.tensor([1], dtype=torch.int32), 8)


def test_the_error_of_images_in_another_range_says_how_to_convert_them() -> None:
    x = torch.rand(2, 3, 4, 4)
    check_images("x", x)
    check_images("x", x.half(), shape=("B", 3, "*spatial"))
    check_images("x", x * (1 + 2e-3) - 1e-3)  # what a resize leaves by rounding
    with pytest.raises(ValueError, match=r"x: got uint8, want floating point in \[0, 1\]: x\.float\(\) / 255"):
        check_images("x", (x * 255).byte())
    with pytest.raises(ValueError, match=r"x: got numbers from .* want images in \[0, 1\]: x / 255"):
        check_images("x", 255 * x)
    with pytest.raises(ValueError, match=r"x: got numbers from .* want images in \[0, 1\]: \(x \+ 1\) / 2"):
        check_images("x", 2 * x - 1)
    with pytest.raises(ValueError, match="x: got numbers from nan to nan"):
        check_unit_range("x", x * math.nan)
    with pytest.raises(ValueError, match=r"want floating point of shape \(B, 1, H, W\)"):
        check_images("x", x, shape=("B", 1, "H", "W"))
    assert refusal(check_images, x[0])


def test_shapes_that_would_be_broadcast_are_refused() -> None:
    x = torch.rand(2, 3)
    check_same_shape("x_hat", x.double(), "x", x)
    with pytest.raises(ValueError, match=r"x_hat: got shape \(2, 1\), want that of x, \(2, 3\)"):
        check_same_shape("x_hat", x[:, :1], "x", x)
    assert (x[:, :1] - x).shape == x.shape  # the proof: torch says nothing


def test_an_error_names_no_address_in_memory() -> None:
    assert refusal(check_whole, object()) == "argument: got an object, want a whole number of at least 1"
    assert " at 0x" in repr(object())  # what would be shown


def test_another_type_than_the_models_is_refused_unless_autocast_converts_it() -> None:
    weight, x = torch.rand(2, device="cpu").bfloat16(), torch.rand(2, device="cpu")
    check_fits("x", x.bfloat16(), weight)
    check_fits("x", x, None)
    with pytest.raises(ValueError, match=r"x: got float32, want bfloat16 as the model is: x\.to\(torch\.bfloat16\)"):
        check_fits("x", x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        check_fits("x", x, weight)
    with pytest.raises(ValueError, match=r"x: got a tensor on cpu, want it where the model is: x\.to\('meta'\)"):
        check_fits("x", x, weight.to("meta"))


def test_the_way_out_is_the_right_one() -> None:
    """All of 1.01 lies outside [0, 1], and (x + 1) / 2 would not mend it."""
    message = refusal(check_images, torch.full((1, 1, 2, 2), 1.01))
    assert message == "argument: got numbers from 1.01 to 1.01, want images in [0, 1]"
    here, meta = torch.zeros(2, device="cpu"), torch.zeros(2, device="meta")
    with pytest.raises(ValueError, match="x_hat: got a tensor on cpu, want it where x is, on meta"):
        check_same_shape("x_hat", here, "x", meta)
    with pytest.raises(ValueError, match="labels: got a tensor on cpu, want it where images is, on meta"):
        check_same_device("labels", here, "images", meta)
    check_same_device("labels", torch.zeros(2), "images", torch.zeros(3))
    assert "got an int64 tensor of shape (2,)" in refusal(check_whole, torch.ones(2, dtype=torch.int64))


def test_a_tensor_without_numbers_cannot_be_brought_to_a_device() -> None:
    cpu, meta = torch.device("cpu"), torch.device("meta")
    for movable in (False, True):
        assert not refusal(check_place, torch.zeros(2, device=cpu), cpu, movable=movable)
        assert not refusal(check_place, torch.zeros(2, device=meta), meta, movable=movable)
        assert "got a tensor on meta, want one on cpu" in refusal(
            check_place, torch.zeros(2, device=meta), cpu, movable=movable
        )
    other = torch.device("cuda", 0)
    assert not refusal(check_place, torch.zeros(2, device=cpu), other, movable=True)
    assert "got a tensor on cpu, want one on cuda:0" in refusal(check_place, torch.zeros(2, device=cpu), other)


def test_a_type_of_numbers_is_a_floating_point_type_of_torch() -> None:
    for good in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        check_float_type("dtype", good)
    for wrong in (torch.int64, torch.bool, "float32", float, None):
        with pytest.raises(ValueError, match=r"dtype: got .* want one of torch\.float"):
            check_float_type("dtype", wrong)


def test_a_generator_draws_on_the_device() -> None:
    check_generator("argument", None)
    check_generator("argument", torch.Generator())
    assert "want a torch.Generator or None" in refusal(check_generator, 3)


def test_values_are_not_read_inside_the_block_and_shapes_are() -> None:
    nan = torch.full((2,), math.nan)
    with unchecked_values():
        with unchecked_values():
            check_finite("argument", nan)
        check_unit_range("argument", nan)  # the inner block ended, this one did not
        check_between("argument", nan, 0, 1)
        assert refusal(check_tensor, nan, shape=("B", "D"))
    assert refusal(check_finite, nan)
    with pytest.raises(ZeroDivisionError), unchecked_values():
        raise ZeroDivisionError
    assert refusal(check_finite, nan)


def test_another_thread_goes_on_checking() -> None:
    seen: list[bool] = []
    with unchecked_values():
        thread = threading.Thread(target=lambda: seen.append(checks_values(torch.zeros(1))))
        thread.start()
        thread.join()
    assert seen == [True]


def test_values_are_not_read_on_the_meta_device_nor_of_nothing() -> None:
    assert not checks_values(torch.zeros(2, device="meta"))
    assert not checks_values(torch.zeros(0))
    check_images("argument", torch.zeros(2, 1, 4, 4, device="meta"))


def test_values_are_not_read_where_torch_exports() -> None:
    class Checked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            check_images("x", x)
            check_codes("codes", x.long(), 8)
            check_tensor("x", x, shape=("B", 1, "*rest"), finite=True)
            return x + 1

    x = torch.rand(2, 1, 4, 4)
    exported = torch.export.export(Checked(), (x,))
    assert torch.equal(exported.module()(x), x + 1)


@pytest.mark.cpu_only("counts calls, and the mode that places tensors repeats each")
def test_nobody_reads_a_tensor_twice_for_one_range(monkeypatch) -> None:
    reads = []
    true = Tensor.aminmax
    monkeypatch.setattr(Tensor, "aminmax", lambda self, **options: reads.append(1) or true(self, **options))
    check_images("x", torch.rand(2, 1, 4, 4))
    check_codes("codes", torch.zeros(2, dtype=torch.int64), 3)
    check_tensor("z", torch.rand(2), finite=True)
    assert len(reads) == 3


def test_images_of_a_decoder_may_leave_the_range_but_not_by_255() -> None:
    x = torch.tensor([-0.9, 0.5, 1.9])
    check_about_unit("x", x)
    with pytest.raises(ValueError, match=r"x: got numbers from 0 to 255, want images in about \[0, 1\]: x / 255"):
        check_about_unit("x", torch.tensor([0.0, 255.0]))
    with pytest.raises(ValueError, match=r"x: got numbers from -1.1 to 0, want images in about \[0, 1\]$"):
        check_about_unit("x", torch.tensor([-1.1, 0.0]))
    with pytest.raises(ValueError, match="x: got numbers from nan"):
        check_about_unit("x", x * math.nan)


def test_every_check_is_tested_here() -> None:
    names = {name for name in vars(arguments) if name.startswith("check")}
    assert names <= set(globals())


def test_a_reconstruction_has_the_shape_of_what_was_rebuilt() -> None:
    x, z = torch.rand(2, 1, 8, 8), torch.rand(2, 5, 2, 2)
    check_rebuilt(x.clone(), z, x)
    with pytest.raises(ValueError, match=r"decoder: got \(2, 1, 4, 4\) from it, want the shape of x, \(2, 1, 8, 8\)"):
        check_rebuilt(x[..., :4, :4], z, x)


def test_what_a_model_gave_is_a_tensor_and_named_by_the_model() -> None:
    check_given("decoder", torch.zeros(2), "images")
    with pytest.raises(ValueError, match="decoder: gave a tuple, want one that gives images as a tensor"):
        check_given("decoder", (torch.zeros(2),), "images")
    x = torch.rand(3, 1, 4, 4)
    assert encoded(lambda x: x.flatten(1), x).shape == (3, 16)
    wrong = {
        r"shape \(\)": lambda x: x.sum(),
        r"shape \(1, 1, 4, 4\)": lambda x: x[:1],
        "an int": lambda x: 3,
    }
    for says, gives in wrong.items():
        with pytest.raises(ValueError, match=rf"encoder: gave {says}, want .*latents"):
            encoded(gives, x)


def test_an_error_of_the_encoder_or_decoder_about_z_names_who_made_it() -> None:
    def takes_latents(z: Tensor) -> None:
        check_tensor("z", z, shape=("B", 3), finite=True)

    with pytest.raises(ValueError, match=r"encoder: got one that takes latents, .* swapped\? \(z: got"):
        encoded(takes_latents, torch.rand(3, 1, 4, 4))
    with pytest.raises(ValueError, match="decoder: got latents of the encoder that it does not take"):
        decoded(takes_latents, torch.rand(3, 4))
    with pytest.raises(arguments.NotFiniteError, match="encoder: gave latents that are not finite"):
        decoded(takes_latents, torch.rand(3, 3) * math.nan)


def test_nan_in_images_is_put_down_to_the_first_that_made_it() -> None:
    fine, nan = torch.rand(2, 3), torch.full((2, 3), math.nan)
    check_decoded(fine, fine)
    for z, name in ((nan, "encoder"), (fine, "decoder")):
        with pytest.raises(arguments.NotFiniteError, match=f"{name}: got 6 NaN"):
            check_decoded(z, nan)
    with unchecked_values():
        check_decoded(nan, nan)


def test_weights_of_nan_are_named() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    check_weights(model)
    model[1].bias.data[0] = math.inf
    with pytest.raises(arguments.NotFiniteError, match=r"1\.bias: got 0 NaN and 1 infinite"):
        check_weights(model)


def test_a_device_that_this_machine_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1", torch.device("cuda", 1)):
        assert refusal(check_available, device) == f"argument: got {str(device)!r}, want one that this machine has"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "cuda:0", "cpu", torch.device("meta")):
        assert not refusal(check_available, device)
    assert "got 'cuda:1', want one that this machine has" in refusal(check_available, "cuda:1")
    assert "want a torch.device or its name" in refusal(check_available, "gpu")


def test_images_with_the_channels_last_are_refused_and_narrow_ones_are_not() -> None:
    for channels in (3, 4):
        message = refusal(check_channels_first, torch.zeros(2, 32, 30, channels))
        assert message == (
            f"argument: got shape (2, 32, 30, {channels}), want (B, C, H, W), the channels first: "
            "argument.permute(0, 3, 1, 2)"
        )
    for shape in ((2, 3, 32, 32), (2, 3, 32, 3), (2, 4, 4, 4), (2, 32, 30, 5)):
        assert not refusal(check_channels_first, torch.zeros(shape))


def test_what_a_discriminator_does_not_take_or_give_is_said_of_the_discriminator() -> None:
    x = torch.rand(4, 1, 8, 8)
    assert judged(lambda x: x.mean((1, 2, 3)), x).shape == (4,)
    for wrong, message in (
        (lambda x: (x, x), "discriminator: gave a tuple, want logits (B, …), a tensor"),
        (lambda x: x.mean(), "discriminator: gave shape (), want logits (B, …) with B = 4"),
        (lambda x: x.reshape(2, -1), "discriminator: gave shape (2, 128), want logits (B, …) with B = 4"),
        (nn.Linear(5, 1), "discriminator: does not take images of shape (4, 1, 8, 8) ("),
        (
            PatchDiscriminator(3, width=2),
            "discriminator: does not take images of shape (4, 1, 8, 8) (x: got float32 of",
        ),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            judged(wrong, x)
    with pytest.raises(ValueError, match=r"^of its own$"):
        judged(failing, x)


def failing(_: Tensor) -> Tensor:
    raise ValueError("of its own")
