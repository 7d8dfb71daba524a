"""Tokens as a language model sees them: one flat vocabulary, orders of stages, and which combinations can occur.

Some combinations of the residual stages of a frame leave [-1, 1], where no latent of the encoder ever was (section
3.2.1). An encoder emits none of these, nor some others; a sampler that masks its logits with `valid_next` never does.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Bool, Int64
from torch import Tensor

from taae.config import BottleneckSpec
from taae.fsq import combine_digits, split_digits

Groups = tuple[tuple[int, ...], ...]
_UNREACHABLE, _START = 0, 1  # rows of `_residual_states`


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec:
    """The vocabulary of the tokens of one bottleneck.

    Ids run: stage 0, stage 1, ..., then the specials. Every method raises ValueError if a shape, a token or an id does
    not fit this vocabulary; its docstring names what else it refuses.

    Attributes:
        codebook_sizes: Tokens of each stage.
        specials: Names of further ids, in order; `delay` needs one called "pad".
        shared_vocabulary: All stages use the same ids, starting at 0. For models with one embedding table per stage.
        bottleneck: Whose combinations `valid_next` and its relatives know; without one, all combinations are valid.

    Raises:
        ValueError: If a codebook is empty, two specials have the same name, or the stages are not the bottleneck's.
    """

    codebook_sizes: tuple[int, ...]
    specials: tuple[str, ...] = ()
    shared_vocabulary: bool = False
    bottleneck: BottleneckSpec | None = None

    def __post_init__(self) -> None:
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(f"tokens need at least one codebook, all sizes positive; got {self.codebook_sizes}")
        if len(set(self.specials)) < len(self.specials):
            raise ValueError(f"specials must have different names, got {self.specials}")
        spec = self.bottleneck
        if spec is not None and self.codebook_sizes != (spec.codebook_size,) * spec.num_stages:
            raise ValueError(f"codebook_sizes {self.codebook_sizes} are not those of the bottleneck {spec}")
        if self.vocabulary_size >= 2**63:
            raise ValueError(f"ids must fit int64, but the vocabulary has {self.vocabulary_size}")

    @classmethod
    def from_bottleneck(
        cls, bottleneck: str | BottleneckSpec, *, specials: tuple[str, ...] = (), shared_vocabulary: bool = False
    ) -> "TokenSpec":
        """The vocabulary of "2x5^6" and the like.

        Raises:
            ValueError: If the bottleneck is continuous, which has no tokens, or no bottleneck at all.
        """
        spec = BottleneckSpec.parse(bottleneck)
        sizes = (spec.codebook_size,) * spec.num_stages
        return cls(codebook_sizes=sizes, specials=specials, shared_vocabulary=shared_vocabulary, bottleneck=spec)

    @property
    def num_stages(self) -> int:
        """Tokens of one frame."""
        return len(self.codebook_sizes)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Id of token 0 of each stage."""
        if self.shared_vocabulary:
            return (0,) * self.num_stages
        return tuple(accumulate(self.codebook_sizes[:-1], initial=0))

    @property
    def special_ids(self) -> dict[str, int]:
        """Id of each special; they follow the stages."""
        first = max(self.codebook_sizes) if self.shared_vocabulary else sum(self.codebook_sizes)
        return {name: first + index for index, name in enumerate(self.specials)}

    @property
    def vocabulary_size(self) -> int:
        """Rows that an embedding table of all ids needs."""
        return (max if self.shared_vocabulary else sum)(self.codebook_sizes) + len(self.specials)

    def flatten(self, tokens: Int64[Tensor, "b s k"]) -> Int64[Tensor, "b n"]:
        """One sequence of ids: all stages of a frame, then the next frame; n = s * k."""
        return rearrange(self._ids(tokens), "b s k -> b (s k)")

    def unflatten(self, ids: Int64[Tensor, "b n"]) -> Int64[Tensor, "b s k"]:
        """The inverse of `flatten`; a special, or an id of another stage than its place says, is an error."""
        if ids.ndim != 2 or ids.shape[1] % self.num_stages:
            raise ValueError(f"ids must be (batch, a multiple of {self.num_stages} stages), got {tuple(ids.shape)}")
        return self._tokens(rearrange(ids, "b (s k) -> b s k", k=self.num_stages))

    def delay(self, tokens: Int64[Tensor, "b s k"]) -> Int64[Tensor, "b t k"]:
        """Ids with stage j moved j steps later and the corners filled with "pad"; t = s + k - 1.

        Source: the delay pattern of MusicGen (Copet et al. 2023): one step predicts one token of each stage, and
        stage j still sees the earlier stages of its frame.

        Raises:
            ValueError: If there is no special "pad".
        """
        ids, pad = self._ids(tokens), self._pad()
        b, s, k = ids.shape
        delayed = ids.new_full((b, s + k - 1, k), pad)
        for stage in range(k):
            delayed[:, stage : stage + s, stage] = ids[:, :, stage]
        return delayed

    def undelay(self, delayed: Int64[Tensor, "b t k"]) -> Int64[Tensor, "b s k"]:
        """The inverse of `delay`; s = t - k + 1.

        Raises:
            ValueError: If there is no "pad", or a corner holds something else.
        """
        k = self.num_stages
        if delayed.ndim != 3 or delayed.shape[2] != k or delayed.shape[1] < k - 1:
            raise ValueError(f"delayed ids must be (batch, at least {k - 1}, {k}), got {tuple(delayed.shape)}")
        stages = [delayed[:, j : delayed.shape[1] - k + 1 + j, j] for j in range(k)]
        tokens = self._tokens(torch.stack(stages, dim=-1))
        if not torch.equal(self.delay(tokens), delayed):
            raise ValueError('delayed ids must be "pad" in the j steps before stage j starts and in all after it ends')
        return tokens

    def valid_levels(self, prefix: Int64[Tensor, "*b j"]) -> Bool[Tensor, "*b d levels"]:
        """For each dimension, the levels that some encoder input takes at stage j after `prefix`.

        The mask of `valid_next` is their product over dimensions, for models that predict dimension by dimension.

        Raises:
            ValueError: If the spec was made without a bottleneck.
        """
        if self.bottleneck is None:
            raise ValueError("only a spec made by TokenSpec.from_bottleneck knows the levels of its dimensions")
        self._check_prefix(prefix)
        table = torch.tensor(_residual_states(self.bottleneck.levels), device=prefix.device)
        return table[self._states(prefix)] != _UNREACHABLE

    def valid_next(self, prefix: Int64[Tensor, "*b j"]) -> Bool[Tensor, "*b m"]:
        """The tokens of stage j that some encoder input emits after `prefix`, the stages 0 ... j-1 of its frame.

        Exact: all true at stage 0 (j = 0; a view that takes no memory), all false after a prefix never emitted.
        """
        self._check_prefix(prefix)
        *batch, j = prefix.shape
        if self.bottleneck is None or j == 0:
            return torch.ones((), dtype=torch.bool, device=prefix.device).expand(*batch, self.codebook_sizes[j])
        levels = self.valid_levels(prefix).unbind(-2)
        mask = levels[-1]  # the last dimension is the most significant digit
        for row in reversed(levels[:-1]):
            mask = (mask[..., :, None] & row[..., None, :]).flatten(-2)
        return mask

    def is_emitted(self, tokens: Int64[Tensor, "*b k"]) -> Bool[Tensor, "*b"]:
        """Whether some encoder input gives exactly this frame."""
        self._check_frame(tokens)
        return (self._states(tokens) != _UNREACHABLE).all(dim=-1)

    def is_in_range(self, tokens: Int64[Tensor, "*b k"]) -> Bool[Tensor, "*b"]:
        """Whether the stages of a frame add up to values in [-1, 1], so that decoding does not clip it.

        Weaker than `is_emitted` from three stages on: of the 81 combinations of a dimension of "4x3^d" 55 are in
        range but only 31 are emitted, since the others take a detour such as 0 + 1/2 + 1/4.
        """
        self._check_frame(tokens)
        if self.bottleneck is None:
            return torch.ones_like(tokens[..., 0], dtype=torch.bool)
        levels, dim = self.bottleneck.levels, self.bottleneck.dim
        # Sum of the stages in half steps of the last one, by Horner's rule, so that nothing is rounded.
        total = torch.zeros((), dtype=torch.int64, device=tokens.device)
        for stage in split_digits(tokens, levels, dim).unbind(-2):
            total = total * (levels - 1) + 2 * stage - (levels - 1)
        return (total.abs() <= (levels - 1) ** self.num_stages).all(dim=-1)

    def clip_rate(self, tokens: Int64[Tensor, "*b k"]) -> float:
        """Share of frames that decoding clips to [-1, 1]; 0 for every encoder, and nan without frames."""
        return (~self.is_in_range(tokens)).double().mean().item()

    def partitioned(self, groups: Groups) -> "TokenSpec":
        """The vocabulary of the tokens that `partition` makes, one codebook per group.

        Raises:
            ValueError: If the bottleneck has several stages, or the groups do not name each dimension once.
        """
        sizes = tuple(self._single_stage(groups)[0] ** len(group) for group in groups)
        return TokenSpec(codebook_sizes=sizes, specials=self.specials, shared_vocabulary=self.shared_vocabulary)

    def partition(self, tokens: Int64[Tensor, "*b 1"], groups: Groups) -> Int64[Tensor, "*b g"]:
        """Split the single token of a frame into one for each group of dimensions (section 3.2.1).

        Raises what `partitioned` raises.

        Args:
            tokens: Of a single-stage bottleneck.
            groups: Dimensions of each new token, least significant first, such as ((0, 1, 2), (3, 4, 5)).
        """
        levels, dim = self._single_stage(groups)
        self._check_frame(tokens)
        digits = split_digits(tokens[..., 0], levels, dim)  # (..., d)
        return torch.stack([combine_digits(digits[..., list(group)], levels) for group in groups], dim=-1)

    def unpartition(self, tokens: Int64[Tensor, "*b g"], groups: Groups) -> Int64[Tensor, "*b 1"]:
        """The inverse of `partition`; raises what `partitioned` raises."""
        self.partitioned(groups)._check_frame(tokens)
        levels, dim = self._single_stage(groups)
        digits = tokens.new_empty((*tokens.shape[:-1], dim))
        for index, group in enumerate(groups):
            digits[..., list(group)] = split_digits(tokens[..., index], levels, len(group))
        return combine_digits(digits, levels)[..., None]

    def _single_stage(self, groups: Groups) -> tuple[int, int]:
        if self.bottleneck is None or self.num_stages > 1:
            raise ValueError(f"only the tokens of a single-stage bottleneck have parts, not those of {self.bottleneck}")
        if sorted(dim for group in groups for dim in group) != list(range(self.bottleneck.dim)) or () in groups:
            raise ValueError(f"groups must name each dimension 0 ... {self.bottleneck.dim - 1} once, got {groups}")
        return self.bottleneck.levels, self.bottleneck.dim

    def _states(self, prefix: Tensor) -> Tensor:
        """What the encoder knows of each dimension's residual after `prefix`: (..., j) -> rows (..., d)."""
        if self.bottleneck is None:
            return torch.full((*prefix.shape[:-1], 1), _START, device=prefix.device)
        levels, dim = self.bottleneck.levels, self.bottleneck.dim
        table = torch.tensor(_residual_states(levels), device=prefix.device)
        state = torch.full((*prefix.shape[:-1], dim), _START, device=prefix.device)
        for stage in split_digits(prefix, levels, dim).unbind(-2):
            state = table[state, stage]
        return state

    def _ids(self, tokens: Tensor) -> Tensor:
        self._check_frame(tokens)
        return tokens + torch.tensor(self.offsets, device=tokens.device)

    def _tokens(self, ids: Tensor) -> Tensor:
        tokens = ids - torch.tensor(self.offsets, device=ids.device)
        self._check_tokens(tokens, "ids", self.offsets)
        return tokens

    def _pad(self) -> int:
        if "pad" not in self.specials:
            raise ValueError(f'a delay pattern needs a special called "pad", there are {self.specials}')
        return self.special_ids["pad"]

    def _check_frame(self, tokens: Tensor) -> None:
        if tokens.shape[-1] != self.num_stages:
            raise ValueError(f"a frame has {self.num_stages} tokens, got shape {tuple(tokens.shape)}")
        self._check_tokens(tokens)

    def _check_prefix(self, prefix: Tensor) -> None:
        if prefix.shape[-1] >= self.num_stages:
            raise ValueError(f"a prefix has fewer than {self.num_stages} tokens of a frame, got {prefix.shape[-1]}")
        self._check_tokens(prefix)

    def _check_tokens(self, tokens: Tensor, kind: str = "tokens", offsets: tuple[int, ...] | None = None) -> None:
        sizes = torch.tensor(self.codebook_sizes, device=tokens.device)[: tokens.shape[-1]]
        is_wrong = (tokens < 0) | (tokens >= sizes)
        if is_wrong.any():
            stage = int(is_wrong.nonzero()[0, -1])
            first = offsets[stage] if offsets else 0
            last, found = first + self.codebook_sizes[stage] - 1, first + int(tokens[is_wrong][0])
            raise ValueError(f"{kind} of stage {stage} must be in {first} ... {last}, got {found}")


@lru_cache(maxsize=16)
def _residual_states(levels: int) -> list[list[int]]:
    """For each set of residuals that can be left (a row), the set that each level leaves; row 0 is the empty set.

    Source: Eq. 1, 3 and 4, with tanh once. In half steps of its stage, 1/(L-1) of its scale, a level c takes the
    residuals in [c - 1, c + 1) and leaves them less c; the next stage's half steps are L-1 times as small. The first
    set is tanh of anything. Few sets occur, whatever the number of stages, so this takes the place of a table of all
    L^k combinations. A tie gives the same levels as the residuals just above it (floor is continuous from the right),
    and 1 the same as those just below, so intervals stand for the sets and those without an inside are empty.
    """
    start = (1 - levels, levels - 1)
    rows, pending, table = {start: _START}, [start], [[_UNREACHABLE] * levels]
    for low, high in pending:
        row = [_UNREACHABLE] * levels
        for level, c in enumerate(range(1 - levels, levels, 2)):
            left = ((max(low, c - 1) - c) * (levels - 1), (min(high, c + 1) - c) * (levels - 1))
            if left[0] < left[1]:
                if left not in rows:
                    rows[left] = len(rows) + 1
                    pending.append(left)
                row[level] = rows[left]
        table.append(row)
    return table
