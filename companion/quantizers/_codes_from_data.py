"""Where the codes of an EMA codebook come from, and what keeps them as they are."""

from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from companion._arguments import check_flag, check_tensor, checks_values
from companion._warnings import warn
from companion.quantizers import _processes
from companion.quantizers.base import VectorwiseQuantizer, check_latents, to_vectors
from companion.quantizers.k_means import k_means
from companion.quantizers.restarts import is_dead
from companion.quantizers.search import check_directions


class CodesFromData(VectorwiseQuantizer):
    """What ``EMAVectorQuantizer`` is besides its lookup and its update (``ema.py``): how it starts, how it is frozen.

    The first codes are centres of k-means on the first training batch (``init="k-means"``), drawn when the quantizer is
    made ("uniform"), or those of :meth:`from_codebook` ("given").
    """

    codebook: Tensor  # (K, D)
    counts: Tensor  # (K,)
    step: Tensor  # ()
    init: str
    frozen: bool
    cosine: bool
    restart_below: float
    seed: int
    stream: int
    _warned: bool

    @property
    def initialised(self) -> bool:
        """Whether ``initialise`` has nothing to do:

        * ``init="uniform"``: the codes were drawn when the quantizer was made;
        * frozen: the codes stay as they are;
        * compiled or exported: the counts cannot be read;
        * otherwise after the first training batch, or where :meth:`from_codebook` was given counts.
        """
        return self.init == "uniform" or self.frozen or not checks_values(self.counts) or self._seen_data()

    @torch.no_grad()
    def initialise(self, z: Tensor) -> None:
        """k-means on the first training batch: its centres are the codes, and how many vectors chose each is N_k.

        Codes from :meth:`from_codebook` stay; each gets an even share of that batch as its count.
        """
        check_latents(z, self.dim)
        self._check_precision()
        vectors = to_vectors(z)
        if self.cosine:
            vectors = functional.normalize(vectors, dim=1)
        available = _processes.total_number(len(vectors), z.device)
        if self.init == "given":
            self._check_given()
            self.counts.fill_(available / self.num_codes)
        else:
            self._check_enough(available)
            codes, counts = k_means(vectors, self.num_codes, seed=self.seed, stream=self.stream, cosine=self.cosine)
            self.codebook.copy_(codes)
            self.counts.copy_(counts)

    @classmethod
    def from_codebook(cls, codebook: Tensor, *, counts: Tensor | None = None, **options: Any) -> Self:
        """A quantizer that starts from the codes in ``codebook``, without k-means, and moves them from there.

        The larger the count N_k of a code, the more slowly it moves. Without ``counts`` each gets an even share of the
        first training batch, so that the codes move at the pace that they have later. With ``counts``, a code whose
        count is so small that the first batch would restart it gets an even share of their sum.

        Args:
            options: any other argument of the class, such as ``decay`` or ``frozen``.

        Shapes:
            codebook: (K, D), copied; counts: (K,), at least 0, at least one positive.

        Raises:
            ValueError: another shape, a number that is not finite, or ``init`` or a size among the options.
        """
        check_tensor("codebook", codebook, shape=("K", "D"), finite=True)
        if options.get("cosine"):
            check_directions("codebook", codebook)
        if not bool(codebook.any()):
            raise ValueError("codebook: got zeros only, want codes")
        if len(codebook) > 1 and bool((codebook == codebook[0]).all()):
            raise ValueError(f"codebook: got the same code {len(codebook)} times, want codes that differ")
        if fixed := {"init", "num_codes", "dim"} & options.keys():
            raise ValueError(f"options: got {', '.join(sorted(fixed))}, want none of them: the codebook decides")
        made = cls(*codebook.shape, init="given", **options)
        codes = codebook.detach().to(made.codebook.dtype)
        made.codebook.copy_(functional.normalize(codes, dim=1) if made.cosine else codes)
        if counts is not None:
            check_tensor("counts", counts, shape=(len(codebook),), finite=True)
            if bool((counts < 0).any()) or not bool(counts.any()):
                raise ValueError("counts: got a negative one or only zeros, want at least 0, and at least one positive")
            made.counts.copy_(counts.where(~is_dead(counts, made.restart_below), counts.mean()))
        return made.to(codebook.device)

    def freeze(self, frozen: bool = True) -> Self:
        """Keep the codebook as it is, in training mode too; ``freeze(False)`` lets it learn again."""
        check_flag("frozen", frozen)
        self.frozen = frozen
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As of any module, with a warning that False does not stop the updates; :meth:`freeze` does."""
        check_flag("requires_grad", requires_grad)
        if not requires_grad and not self.frozen:
            warn("requires_grad_: got False, but the codes move by averages; freeze() keeps them")
        return super().requires_grad_(requires_grad)

    # Checks --------------------------------------------------------------------------------------------------------

    def _seen_data(self) -> bool:
        return int(self.step) > 0 or bool(self.counts.any())

    def _warn_if_untrained(self) -> None:
        """Warn, once, where codes are used before any was learnt."""
        if self._warned or self.init == "uniform" or not checks_values(self.counts):
            return
        if self.init == "given":
            self._check_given()
        elif not self._seen_data():
            later = "it is frozen" if self.frozen else "k-means takes them from the first training batch"
            warn(f"EMAVectorQuantizer: its codes are still random; {later}")
        self._warned = True

    def _check_precision(self) -> None:
        if self.codebook.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"codebook: got {self.codebook.dtype}, want torch.float32 or torch.float64 to learn: "
                "quantizer.float(), or quantizer.freeze()"
            )

    def _check_enough(self, available: int) -> None:
        if available < self.num_codes:
            raise ValueError(
                f"z: got {available} vectors for k-means with {self.num_codes} codes, want at least as many in the "
                "first training batch: a larger batch, fewer codes, or init='uniform'"
            )

    def _check_given(self) -> None:
        if not bool(self.codebook.any()):
            raise ValueError(
                "init: got 'given' and no codes, want EMAVectorQuantizer.from_codebook(codes), or a file to load"
            )
