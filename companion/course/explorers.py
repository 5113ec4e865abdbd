"""Things to play with, one or two in each chapter: sliders beside a picture that follows them."""

from companion.course.chapter_00.explorer import shift_and_blur
from companion.course.chapter_01.explorer import latent_plane
from companion.course.chapter_02.explorer import kl_sweep, latent_grid
from companion.course.chapter_03.explorer import codes_in_the_plane, draw_steps
from companion.course.chapter_04.explorer import code_map
from companion.course.chapter_05.explorer import draw_chase, moving_clouds
from companion.course.chapter_06.explorer import depth_slider
from companion.course.chapter_07.explorer import prior_samples
from companion.course.chapter_08.explorer import stack_sampler
from companion.course.chapter_09.explorer import draw_loss_weights, loss_weights
from companion.course.chapter_10.explorer import (
    backbones_over_training,
    draw_backbones_over_training,
    draw_receptive_fields,
    receptive_fields,
)
from companion.course.chapter_11.explorer import codec_beside_codes, draw_codec_beside_codes
from companion.course.explorer_widgets import explorer

__all__ = [
    "backbones_over_training",
    "code_map",
    "codec_beside_codes",
    "codes_in_the_plane",
    "depth_slider",
    "draw_backbones_over_training",
    "draw_chase",
    "draw_codec_beside_codes",
    "draw_loss_weights",
    "draw_receptive_fields",
    "draw_steps",
    "explorer",
    "kl_sweep",
    "latent_grid",
    "latent_plane",
    "loss_weights",
    "moving_clouds",
    "prior_samples",
    "receptive_fields",
    "shift_and_blur",
    "stack_sampler",
]
