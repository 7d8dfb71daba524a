"""What a model is: frozen dataclasses, filled from TOML presets. No torch here.

A preset names every number of section 4.2 and appendix A; what can be computed is a property.
"""

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

NoiseMode = Literal["paper", "published"]
T = TypeVar("T")

_PRESETS = Path(__file__).parent / "presets"
_SPEC_PATTERN = re.compile(r"(\d{1,3})x(\d{1,5})\^(\d{1,3})")


@dataclass(frozen=True, slots=True)
class BottleneckSpec:
    """How latents become tokens: `num_stages` residual stages of `levels ** dim` codes each, or continuous.

    Source: section 3.2.1 and Eq. 5-6. Written "<stages>x<levels>^<dim>": "1x6^6" is 400 bit/s at 25 Hz,
    "2x5^6" 700. "continuous" keeps tanh(latents) and has no tokens (`num_stages == 0`).

    Raises:
        ValueError: If the numbers make no quantiser, or a codebook does not fit int64.
    """

    num_stages: int
    levels: int
    dim: int

    def __post_init__(self) -> None:
        if self.is_continuous:
            if self.levels or self.dim:
                raise ValueError("a continuous bottleneck has no levels and no dim")
            return
        if self.num_stages < 1 or self.levels < 2 or self.dim < 1:
            raise ValueError(f"bottleneck needs stages >= 1, levels >= 2, dim >= 1; got {self}")
        if self.num_stages > 1 and self.levels % 2 == 0:
            raise ValueError(f"residual stages need an odd number of levels (2^n + 1, section 3.2.1); got {self}")
        if self.codebook_size > 2**62 or self.grid_levels > 2**20:
            raise ValueError(f"bottleneck {self} is too large: a token must fit 62 bits and a grid 2^20 values")

    @classmethod
    def parse(cls, text: "str | BottleneckSpec") -> "BottleneckSpec":
        """Read "2x5^6" or "continuous".

        Raises:
            ValueError: If the text is neither.
        """
        if isinstance(text, BottleneckSpec):
            return cls(text.num_stages, text.levels, text.dim)
        if text == "continuous":
            return cls(0, 0, 0)
        match = _SPEC_PATTERN.fullmatch(text)
        if match is None:
            raise ValueError(
                f"bottleneck must read '<stages>x<levels>^<dim>' such as '2x5^6', or 'continuous'; got {text!r}"
            )
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return "continuous" if self.is_continuous else f"{self.num_stages}x{self.levels}^{self.dim}"

    @property
    def is_continuous(self) -> bool:
        return self.num_stages == 0

    @property
    def codebook_size(self) -> int:
        """Eq. 6, per stage; 0 when continuous."""
        return 0 if self.is_continuous else self.levels**self.dim

    @property
    def grid_levels(self) -> int:
        """Levels of the single quantiser that all stages together equal: (L - 1)^stages + 1."""
        return (self.levels - 1) ** self.num_stages + 1

    @property
    def bits_per_frame(self) -> int:
        """Bits of one packed frame, every stage rounded up to whole bits (Eq. 5)."""
        self._require_tokens()
        return self.num_stages * (self.codebook_size - 1).bit_length()

    @property
    def exact_bits_per_frame(self) -> float:
        """log2 of the number of token combinations of one frame, without the ceiling of Eq. 5."""
        self._require_tokens()
        return self.num_stages * self.dim * math.log2(self.levels)

    def bits_per_second(self, frame_rate_hz: float) -> float:
        """Eq. 5: 625 for "1x17^6" at 25 Hz."""
        return frame_rate_hz * self.bits_per_frame

    def _require_tokens(self) -> None:
        if self.is_continuous:
            raise ValueError("a continuous bottleneck has no tokens and no bit rate; choose one such as '2x5^6'")


@dataclass(frozen=True, slots=True, kw_only=True)
class FSQConfig:
    """The bottleneck in training (section 3.2, 4.2)."""

    train_levels: tuple[int, ...] = (5, 9, 17)
    noise_probability: float = 0.5
    noise_mode: NoiseMode = "paper"

    def __post_init__(self) -> None:
        if not self.train_levels or min(self.train_levels) < 2:
            raise ValueError(f"fsq.train_levels must name at least one number >= 2, got {self.train_levels}")
        if not 0 <= self.noise_probability <= 1:
            raise ValueError(f"fsq.noise_probability must be in [0, 1], got {self.noise_probability}")
        if self.noise_mode not in ("paper", "published"):
            raise ValueError(f"fsq.noise_mode must be 'paper' or 'published', got {self.noise_mode!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A TAAE (section 3.1, 4.2). The defaults are the 950M model of the paper.

    Attributes:
        name: What files and pages call the model.
        strides: Downsampling of each encoder block, first to last; the decoder walks them backwards.
        depths: Transformer layers of each encoder block, likewise.
        window: Keys that a query sees before and after itself, (63, 64) = 128 keys with itself.
        is_causal: Causal convolutions and no key after the query (A.4).
        norm_eps: Added to the variance in every layer norm of the residual stream (B.1).
        rope_dims: Dimensions of each head that rotate, from the first.
    """

    name: str = "paper-950m"
    sample_rate_hz: int = 16000
    patch_samples: int = 320
    width: int = 1024
    head_dim: int = 128
    rope_dims: int = 64
    ff_mult: int = 4
    strides: tuple[int, ...] = (1, 2)
    depths: tuple[int, ...] = (8, 20)
    latent_dim: int = 6
    window: tuple[int, int] = (63, 64)
    is_causal: bool = False
    norm_eps: float = 1e-2
    layer_scale_init: float = 1e-2
    fsq: FSQConfig = field(default_factory=FSQConfig)

    def __post_init__(self) -> None:
        for key in ("sample_rate_hz", "patch_samples", "width", "head_dim", "ff_mult", "latent_dim"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} must be at least 1, got {getattr(self, key)}")
        if self.width % self.head_dim:
            raise ValueError(f"width must be a multiple of head_dim, got {self.width} and {self.head_dim}")
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise ValueError(f"rope_dims must be even and at most head_dim {self.head_dim}, got {self.rope_dims}")
        if not self.strides or len(self.strides) != len(self.depths):
            raise ValueError(f"strides and depths must name the same blocks, got {self.strides} and {self.depths}")
        if min(self.strides) < 1 or min(self.depths) < 0:
            raise ValueError(f"strides must be >= 1 and depths >= 0, got {self.strides} and {self.depths}")
        if len(self.window) != 2 or min(self.window) < 0:
            raise ValueError(f"window must be (keys before, keys after), both >= 0; got {self.window}")
        if self.is_causal and self.window[1]:
            raise ValueError(f"a causal model sees no key after the query, got window {self.window}")
        if self.norm_eps <= 0:
            raise ValueError(f"norm_eps must be positive, got {self.norm_eps}")

    @property
    def hop_samples(self) -> int:
        """Samples of one latent frame (640)."""
        return self.patch_samples * math.prod(self.strides)

    @property
    def frame_rate_hz(self) -> float:
        """Latent frames per second (25.0)."""
        return self.sample_rate_hz / self.hop_samples

    @property
    def num_heads(self) -> int:
        return self.width // self.head_dim

    @property
    def latency_ms(self) -> float | None:
        """Algorithmic latency of the causal model: one latent frame (B.2); None when it is not causal."""
        return 1000 * self.hop_samples / self.sample_rate_hz if self.is_causal else None

    @property
    def receptive_frames(self) -> tuple[int, int]:
        """Latent frames before and after a frame that either half of the model can see (B.2), rounded up."""
        per_latent_frame = [math.prod(self.strides[block + 1 :]) for block in range(len(self.strides))]
        layers = sum(depth / rate for depth, rate in zip(self.depths, per_latent_frame, strict=True))
        # Convolutions: 7 patches at the audio end, 3 latents at the other, 2 * stride frames at each change of rate.
        convolutions = 8 + 2 * len(self.strides)
        before, after = (math.ceil(layers * reach) + convolutions for reach in self.window)
        return before, 0 if self.is_causal else after

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them back."""
        return dataclasses.asdict(self)


def from_dict(values: Mapping[str, Any], source: str = "config") -> ModelConfig:
    """Build a ModelConfig from plain values (parsed TOML or JSON).

    Raises:
        ValueError: If a key is unknown or a value has the wrong type; the text names `source` and the key.
    """
    return build(ModelConfig, values, source)


def preset_names() -> list[str]:
    """Names that `load_preset` takes."""
    return sorted(path.stem for path in _PRESETS.glob("*.toml"))


def load_preset(name: str) -> ModelConfig:
    """Read `presets/<name>.toml`.

    Raises:
        ValueError: If there is no such preset; the text lists those there are.
    """
    path = _PRESETS / f"{name}.toml"
    if name not in preset_names():
        raise ValueError(f"no preset {name!r}; there are {', '.join(preset_names())}")
    return load_toml(path)


def load_toml(path: Path) -> ModelConfig:
    """Read a model configuration; its name is the file's stem.

    Raises:
        ValueError: If the file is not TOML or holds what `from_dict` refuses.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None
    return from_dict({"name": path.stem} | values, str(path))


def build(cls: type[T], values: Any, source: str) -> T:
    """Fill a frozen dataclass from plain values; lists become tuples, tables the dataclasses that fields ask for.

    Raises:
        ValueError: If a key is unknown or a value has the wrong type; the text names `source` and the key.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected a table of keys and values, got {values!r}")
    known = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{source}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")
    built = {}
    for key, value in values.items():
        if dataclasses.is_dataclass(known[key].type):
            built[key] = build(cast(type, known[key].type), value, f"{source}: {key}")
        else:
            built[key] = tuple(value) if isinstance(value, list) else value
            _check_type(built[key], known[key].type, f"{source}: {key}")
    return cls(**built)


def _check_type(value: Any, expected: Any, where: str) -> None:
    numbers = {int: int, float: (int, float), str: str, bool: bool}
    if expected in numbers:
        is_right = isinstance(value, numbers[expected]) and (expected is bool or not isinstance(value, bool))
    elif expected == NoiseMode:
        is_right = isinstance(value, str)
    elif expected == dict[str, Any]:
        is_right = isinstance(value, Mapping)
    else:
        is_right = isinstance(value, tuple) and all(type(item) is int for item in value)
    if not is_right:
        raise ValueError(f"{where} must be {getattr(expected, '__name__', expected)}, got {value!r}")
