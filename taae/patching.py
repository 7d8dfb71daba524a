"""The patched (polyphase) transform of appendix B.4: exact, critically sampled, no window."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def patchify(wav: Float[Tensor, "b 1 n"], patch_samples: int) -> Float[Tensor, "b t p"]:
    """Cut audio into consecutive patches; the end is zero-padded to a whole patch.

    Source: B.4. Channel h of patch l is sample `patch_samples * l + h`.
    """
    wav = F.pad(wav, (0, -wav.shape[-1] % patch_samples))
    return rearrange(wav, "b 1 (t p) -> b t p", p=patch_samples)


def unpatchify(patches: Float[Tensor, "b t p"]) -> Float[Tensor, "b 1 n"]:
    """Join patches again: the exact inverse of `patchify` on whole patches."""
    return rearrange(patches, "b t p -> b 1 (t p)")
