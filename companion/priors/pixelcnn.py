"""A gated PixelCNN over codes (study 07b): the prior of the VQ-VAE paper, as a yardstick for the transformer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from companion._arguments import DEEPEST, check_size
from companion.priors._checks import check_classes, check_inputs
from companion.priors.base import Prior, Steps


class PixelCNN(Prior):
    """Two stacks of gated convolutions (van den Oord et al. 2016, "Conditional image generation with PixelCNN
    decoders", figure 2 and equation 4).

    The vertical stack sees the rows above. The horizontal stack sees the codes to the left, and at each layer the
    vertical stack. Together they see all earlier codes within reach; a single masked stack has a blind spot. The input
    of the vertical stack is shifted down by one row, and that of the horizontal stack to the right by one column. So a
    window that includes its own position sees earlier codes only.

    Args:
        num_codes, grid, num_classes, label_dropout, tokenizer: see :class:`Prior`; grid is (h, w).
        dim: channels.
        layers: gated layers.
        kernel: width of the windows, odd.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_codes: int,
        grid: Sequence[int],
        *,
        dim: int = 128,
        layers: int = 6,
        kernel: int = 5,
        num_classes: int = 0,
        label_dropout: float = 0.0,
        tokenizer: str = "",
    ) -> None:
        super().__init__(num_codes, grid, num_classes=num_classes, label_dropout=label_dropout, tokenizer=tokenizer)
        if len(grid) != 2:
            raise ValueError(f"grid: got {tuple(grid)}, want (h, w)")
        check_size("dim", dim)
        check_size("layers", layers, most=DEEPEST)
        check_size("kernel", kernel, most=1023)
        if kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, want an odd number")
        self.codes = nn.Embedding(num_codes, dim)
        self.sos = nn.Embedding(num_classes + 1, dim)
        self.layers = nn.ModuleList(_GatedLayer(dim, kernel) for _ in range(layers))
        self.to_logits = nn.Sequential(nn.ReLU(), nn.Conv2d(dim, dim, 1), nn.ReLU(), nn.Conv2d(dim, num_codes, 1))

    def all_logits(self, codes: Tensor, classes: Tensor) -> Tensor:
        check_inputs(self, codes, classes)
        return self._logits_of_rows(codes, classes)

    def _logits_of_rows(self, codes: Tensor, classes: Tensor) -> Tensor:
        """The first rows of tables, (B, rows, w) → (B, rows, w, K). They do not depend on the rows below."""
        x = self.codes(codes).movedim(-1, 1)  # (B, dim, rows, w)
        start = self.sos(classes)[:, :, None, None]  # (B, dim, 1, 1); fills the row and the column that shifting frees
        vertical = torch.cat([start.expand(-1, -1, 1, x.shape[3]), x[:, :, :-1]], dim=2)
        horizontal = torch.cat([start.expand(-1, -1, x.shape[2], 1), x[:, :, :, :-1]], dim=3)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, start)
        logits: Tensor = self.to_logits(horizontal)
        return logits.movedim(1, -1)

    def steps(self, classes: Tensor, *, cache: bool) -> Steps:
        """``cache`` makes no difference: nothing is kept between steps."""
        check_classes(self, classes)
        return _PixelCNNSteps(self, classes)


class _GatedLayer(nn.Module):
    """tanh(a) · sigmoid(b) in each stack. The vertical stack feeds the horizontal one, which is residual."""

    def __init__(self, dim: int, kernel: int) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.vertical = nn.Conv2d(dim, 2 * dim, (self.reach + 1, kernel), padding=(0, self.reach))
        self.horizontal = nn.Conv2d(dim, 2 * dim, (1, self.reach + 1))
        self.across = nn.Conv2d(2 * dim, 2 * dim, 1)
        self.condition = nn.Conv2d(dim, 4 * dim, 1)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, vertical: Tensor, horizontal: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        for_vertical, for_horizontal = self.condition(start).chunk(2, dim=1)
        v = self.vertical(functional.pad(vertical, (0, 0, self.reach, 0)))  # its own row and those above
        h = self.horizontal(functional.pad(horizontal, (self.reach, 0))) + self.across(v)
        return _gated(v + for_vertical), horizontal + self.out(_gated(h + for_horizontal))


def _gated(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class _PixelCNNSteps(Steps):
    def __init__(self, prior: PixelCNN, classes: Tensor) -> None:
        self.prior, self.classes = prior, classes

    def start_after(self, codes: Tensor, given: int) -> None:
        pass  # nothing is kept between steps

    def logits(self, codes: Tensor, step: int) -> Tensor:
        rows = step // self.prior.grid[1] + 1  # the rows below are not drawn yet
        table = codes.reshape(codes.shape[0], *self.prior.grid)[:, :rows]
        return self.prior._logits_of_rows(table, self.classes).flatten(1, 2)[:, step]
