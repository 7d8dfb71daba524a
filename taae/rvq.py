"""Residual vector quantiser with the interface of FSQ, for the ablation "FSQ against RVQ at the same bit rate".

Two ways of learning the codebooks:

* `"ema"`: entries are moving averages of the vectors assigned to them (van den Oord et al. 2017, "Neural Discrete
  Representation Learning", appendix A.1; Razavi et al. 2019, VQ-VAE-2), residual stages as in SoundStream
  (Zeghidour et al. 2021) and EnCodec (Défossez et al. 2022).
* `"factorised"`: each stage looks its entry up by cosine similarity in a small space between two learned projections
  (Yu et al. 2022, ViT-VQGAN), and the entries learn by gradient, as in DAC (Kumar et al. 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class RVQConfig:
    """A residual vector quantiser (`"ema"`) in place of FSQ in training, for the ablation.

    Attributes:
        num_stages: Tokens per frame.
        codebook_size: Entries in each stage.
        commitment_weight: Weight of the commitment loss (van den Oord et al. 2017).
        decay: Of the moving averages, per micro-batch.
        revive_below: As in `ResidualVQ`.
    """

    num_stages: int = 4
    codebook_size: int = 128
    commitment_weight: float = 0.25
    decay: float = 0.99
    revive_below: float = 0.1

    def __post_init__(self) -> None:
        if min(self.num_stages, self.codebook_size) < 1 or self.commitment_weight < 0:
            raise ValueError(
                f"num_stages and codebook_size must be at least 1 and commitment_weight not negative, got "
                f"{self.num_stages}, {self.codebook_size} and {self.commitment_weight}"
            )

    def build(self, dim: int, seed: int = 0) -> "ResidualVQ":
        """The fresh quantiser of latents of `dim` values."""
        return ResidualVQ(
            dim,
            self.codebook_size,
            self.num_stages,
            commitment_weight=self.commitment_weight,
            decay=self.decay,
            revive_below=self.revive_below,
            seed=seed,
        )


def _item_mse(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().mean(dim=(1, 2))  # (b, s, c) -> (b,)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def _over_ranks(total: Tensor) -> Tensor:
    if _is_distributed():
        dist.all_reduce(total)
    return total


class _Stage(nn.Module):
    """What both kinds of stage share: assignment, usage, first entries and revival."""

    codebook: Tensor  # (m, c)
    usage: Tensor  # (m,) moving average of how many vectors of a batch chose each entry
    num_updates: Tensor

    def __init__(self, codebook_size: int, *, decay: float, revive_below: float, init_from_batch: bool, seed: int):
        super().__init__()
        self.decay, self.revive_below, self.init_from_batch, self.seed = decay, revive_below, init_from_batch, seed
        self.register_buffer("usage", torch.ones(codebook_size))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Entry with the smallest Euclidean distance to each vector: (b, s, c) -> (b, s)."""
        return (self.codebook.square().sum(-1) - 2 * vectors @ self.codebook.T).argmin(-1)

    def assign(self, residual: Tensor) -> Tensor:
        """Tokens (b, s) of residuals (b, s, d)."""
        return self.nearest(residual)

    def values(self, tokens: Tensor) -> Tensor:
        """Codes (b, s, d) of tokens (b, s)."""
        return F.embedding(tokens, self.codebook)

    def start(self, vectors: Tensor) -> None:
        """Before the first update, take the entries from the first batch (SoundStream runs k-means here)."""
        if self.training and self.init_from_batch and self.num_updates.item() == 0:
            flat = vectors.detach().flatten(0, 1)
            self.replace(torch.ones_like(self.usage, dtype=torch.bool), flat, flat.shape[0] / len(self.usage))

    @torch.no_grad()
    def update(self, vectors: Tensor, tokens: Tensor) -> None:
        """Count one training batch, learn from it and revive entries that few vectors choose."""
        flat, tokens = vectors.detach().flatten(0, 1), tokens.flatten()  # (b * s, c), (b * s,)
        counts = _over_ranks(torch.bincount(tokens, minlength=len(self.usage)).to(self.usage.dtype))
        self.usage.mul_(self.decay).add_(counts, alpha=1 - self.decay)
        self.learn(flat, tokens, counts)
        self.num_updates.add_(1)
        uniform = counts.mean().item()
        dead = self.usage < self.revive_below * uniform
        if dead.any():
            self.replace(dead, flat, uniform)

    def learn(self, flat: Tensor, tokens: Tensor, counts: Tensor) -> None:
        """Move the entries towards their vectors; nothing here where the optimiser does that."""

    @torch.no_grad()
    def replace(self, which: Tensor, flat: Tensor, uniform: float) -> None:
        """Put vectors of the batch, chosen at random, in the place of the entries `which` (SoundStream, III-C)."""
        # Drawn from (seed, step) alone, on the CPU: a resumed run and another device revive the same way.
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * int(self.num_updates))
        num_wanted = int(which.sum())
        order = torch.randperm(flat.shape[0], generator=generator)
        order = order.repeat(-(-num_wanted // len(order)))[:num_wanted].to(flat.device)
        chosen = flat[order]
        if _is_distributed():
            dist.broadcast(chosen, 0)
        self.codebook[which] = chosen
        self.usage[which] = uniform


class _EMAStage(_Stage):
    sums: Tensor  # (m, c) moving average of the sum of the vectors that chose each entry

    def __init__(self, dim: int, codebook_size: int, *, commitment_weight: float, **statistics):
        super().__init__(codebook_size, **statistics)
        self.commitment_weight = commitment_weight
        generator = torch.Generator().manual_seed(self.seed)
        self.register_buffer("codebook", torch.randn(codebook_size, dim, generator=generator))
        self.register_buffer("sums", self.codebook.clone())

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (without gradient), tokens, and commitment loss per item (third term of Eq. 3, van den Oord 2017)."""
        self.start(residual)
        tokens = self.assign(residual)
        codes = self.values(tokens)
        if self.training:
            self.update(residual, tokens)
        return codes, tokens, self.commitment_weight * _item_mse(residual, codes)

    def learn(self, flat: Tensor, tokens: Tensor, counts: Tensor) -> None:
        batch_sums = _over_ranks(torch.zeros_like(self.sums).index_add_(0, tokens, flat))
        self.sums.mul_(self.decay).add_(batch_sums, alpha=1 - self.decay)
        # Only entries that were chosen: for the others the quotient stays, or becomes 0 / 0 after thousands of steps.
        mean = self.sums / self.usage[:, None]
        self.codebook.copy_(torch.where(counts[:, None] > 0, mean, self.codebook))

    def replace(self, which: Tensor, flat: Tensor, uniform: float) -> None:
        super().replace(which, flat, uniform)
        self.sums[which] = self.codebook[which] * uniform


class _FactorisedStage(_Stage):
    def __init__(self, dim: int, codebook_size: int, *, code_dim: int, commitment_weight: float, **statistics):
        super().__init__(codebook_size, **statistics)
        self.commitment_weight = commitment_weight
        self.project_in, self.project_out = nn.Linear(dim, code_dim), nn.Linear(code_dim, dim)
        generator = torch.Generator().manual_seed(self.seed)
        self.codebook = nn.Parameter(torch.randn(codebook_size, code_dim, generator=generator))

    def forward(self, residual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes, tokens, and codebook plus commitment loss per item (Eq. 3, van den Oord 2017, in the small space)."""
        vectors = self.project_in(residual)  # (b, s, code_dim)
        self.start(vectors)
        tokens = self.nearest(vectors)
        entries = F.embedding(tokens, self.codebook)
        loss = _item_mse(vectors.detach(), entries) + self.commitment_weight * _item_mse(vectors, entries.detach())
        if self.training:
            self.update(vectors, tokens)
        # The sum is exactly `entries`, and its gradient passes to `vectors` unchanged (straight through).
        return self.project_out(entries.detach() + (vectors - vectors.detach())), tokens, loss

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """Entry with the largest cosine similarity, which is the nearest one after L2 normalisation."""
        return (F.normalize(vectors, dim=-1) @ F.normalize(self.codebook, dim=-1).T).argmax(-1)

    def assign(self, residual: Tensor) -> Tensor:
        return self.nearest(self.project_in(residual))

    def values(self, tokens: Tensor) -> Tensor:
        return self.project_out(F.embedding(tokens, self.codebook))


class ResidualVQ(nn.Module):
    """Sum of `num_stages` codebook entries, each chosen for what the stages before it left over.

    Latents are quantised in float32, also under autocast. In distributed training counts and sums run over all ranks.

    Args:
        dim: Size of a latent.
        codebook_size: Entries in each stage.
        num_stages: Tokens per frame.
        mode: `"ema"` or `"factorised"`; see the top of this file.
        code_dim: Size of the space of the factorised look-up (DAC: 8); `"ema"` has none.
        commitment_weight: Weight of the commitment loss (van den Oord et al. 2017: 0.25).
        decay: Of the moving averages, per training step.
        revive_below: An entry whose average use falls below this share of uniform use is replaced by a vector of the
            batch; 0 never revives. SoundStream's absolute threshold of 2 vectors would depend on the batch size.
        stage_dropout: Probability with which a training item keeps only a random number of stages, uniform in
            1 ... `num_stages` (SoundStream's quantiser dropout, per item as in DAC).
        init_from_batch: Take the first entries from the first training batch.
        seed: Of the first entries and of revival, which are drawn from nothing else.

    Raises:
        ValueError: If a size is below 1 or a share is outside its range.
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_stages: int,
        *,
        mode: Literal["ema", "factorised"] = "ema",
        code_dim: int = 8,
        commitment_weight: float = 0.25,
        decay: float = 0.99,
        revive_below: float = 0.1,
        stage_dropout: float = 0.0,
        init_from_batch: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        sizes, shares = (dim, codebook_size, num_stages, code_dim), (decay, revive_below, stage_dropout)
        if min(sizes) < 1:
            raise ValueError(f"dim, codebook_size, num_stages and code_dim must be at least 1, got {sizes}")
        if not (0 <= decay < 1 and 0 <= revive_below < 1 and 0 <= stage_dropout <= 1):
            raise ValueError(f"decay, revive_below (both < 1) and stage_dropout must be in [0, 1], got {shares}")
        if mode not in ("ema", "factorised"):
            raise ValueError(f'mode must be "ema" or "factorised", got {mode!r}')
        self.dim, self.codebook_size, self.num_stages = dim, codebook_size, num_stages
        self.mode, self.stage_dropout = mode, stage_dropout
        shared: dict[str, Any] = {"decay": decay, "revive_below": revive_below, "init_from_batch": init_from_batch}
        shared |= {"commitment_weight": commitment_weight} | ({"code_dim": code_dim} if mode == "factorised" else {})
        kind = _EMAStage if mode == "ema" else _FactorisedStage
        stages = nn.ModuleList(kind(dim, codebook_size, seed=seed + index, **shared) for index in range(num_stages))
        self.stages = cast(Sequence[_Stage], stages)

    def bits_per_second(self, frame_rate_hz: float) -> float:
        """Bit rate with every token in a whole number of bits (Eq. 5)."""
        return frame_rate_hz * self.num_stages * (self.codebook_size - 1).bit_length()

    def forward(
        self, latents: Float[Tensor, "b s d"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b s d"], Int64[Tensor, "b s k"], Float[Tensor, ""]]:
        """Quantise; in training mode also learn from this batch.

        Args:
            latents: Encoder output; there is no tanh here.
            generator: Source of the draws of `stage_dropout`.

        Returns:
            Codes whose gradient passes to the latents (straight through; with factorised codes through the
            projections, as in DAC); tokens of all stages, dropped ones included; and the codebook and commitment
            losses, summed over stages, averaged over items (Eq. 3 of van den Oord et al. 2017).

        Raises:
            ValueError: If the latents are not (b, s, dim).
        """
        residual = self._checked(latents)
        is_kept = self._kept_stages(latents, generator)  # (b, k)
        codes, loss, tokens = torch.zeros_like(residual), residual.new_zeros(()), []
        with torch.autocast(latents.device.type, enabled=False):
            for stage, kept in zip(self.stages, is_kept.unbind(1), strict=True):
                stage_codes, stage_tokens, stage_loss = stage(residual)
                codes = codes + stage_codes * kept[:, None, None]
                loss = loss + (stage_loss * kept).mean()
                residual = residual - stage_codes
                tokens.append(stage_tokens)
        if self.mode == "ema":
            codes = codes + (latents - latents.detach())
        return codes, torch.stack(tokens, dim=-1), loss

    @torch.no_grad()
    def tokenize(self, latents: Float[Tensor, "b s d"]) -> Int64[Tensor, "b s k"]:
        """Tokens, int64, without learning; the first n of the last axis are the tokens of an n-stage quantiser.

        Raises:
            ValueError: If the latents are not (b, s, dim).
        """
        residual, tokens = self._checked(latents), []
        with torch.autocast(latents.device.type, enabled=False):
            for stage in self.stages:
                tokens.append(stage.assign(residual))
                residual = residual - stage.values(tokens[-1])
        return torch.stack(tokens, dim=-1)

    def detokenize(self, tokens: Int64[Tensor, "b s k"]) -> Float[Tensor, "b s d"]:
        """Sum of the chosen entries; fewer stages than `num_stages` give the coarser codes of a lower bit rate.

        Raises:
            ValueError: If there are no or too many stages, or a token is outside 0 ... codebook_size - 1.
        """
        if tokens.ndim != 3 or not 1 <= tokens.shape[-1] <= self.num_stages:
            raise ValueError(f"tokens must be (batch, frames, 1 to {self.num_stages}), got {tuple(tokens.shape)}")
        if tokens.numel() and not (0 <= tokens.min() and tokens.max() < self.codebook_size):
            low, high = int(tokens.min()), int(tokens.max())
            raise ValueError(f"tokens must be in 0 ... {self.codebook_size - 1}, got {low} ... {high}")
        codes = torch.zeros((*tokens.shape[:2], self.dim), device=tokens.device)
        with torch.autocast(tokens.device.type, enabled=False):
            for stage, stage_tokens in zip(self.stages, tokens.unbind(-1), strict=False):
                codes = codes + stage.values(stage_tokens)
        return codes

    def _checked(self, latents: Tensor) -> Tensor:
        if latents.ndim != 3 or latents.shape[-1] != self.dim:
            raise ValueError(f"latents must be (batch, frames, {self.dim}), got {tuple(latents.shape)}")
        return latents.float()

    def _kept_stages(self, latents: Tensor, generator: torch.Generator | None) -> Tensor:
        device = latents.device
        num_kept = torch.full((latents.shape[0], 1), self.num_stages, device=device)
        if self.training and self.stage_dropout > 0:
            is_short = torch.rand(num_kept.shape, generator=generator, device=device) < self.stage_dropout
            drawn = torch.randint(1, self.num_stages + 1, num_kept.shape, generator=generator, device=device)
            num_kept = torch.where(is_short, drawn, num_kept)
        return torch.arange(self.num_stages, device=device) < num_kept  # (b, k)
