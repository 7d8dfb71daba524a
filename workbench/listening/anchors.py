"""The low-pass anchors of ITU-R BS.1534-3: zero-phase, at any sample rate that can hold them, inside the mask.

The mask of the 3.5 kHz anchor: ripple of at most 0.1 dB up to 3.5 kHz, at least 25 dB down at 4 kHz and 50 dB from
4.5 kHz on (section 5.1). The 7 kHz anchor is held to the same distances, 7.5 and 8 kHz.
"""

from typing import Any

import numpy as np
from scipy.signal import fftconvolve, firwin, freqz, kaiser_beta, kaiserord

from taae.audio import to_mono

CUTOFFS_HZ = (3500, 7000)
RIPPLE_DB = 0.1
STOPS_DB = ((500.0, 25.0), (1000.0, 50.0))  # (Hz above the cutoff, attenuation from there on)

_TRANSITION_HZ = 500.0
_ATTENUATION_DB = 70.0  # 20 dB better than the mask; ripple is 0.003 dB then
_NARROWEST_HZ = 100.0


def low_pass(wav: Any, sample_rate_hz: int, cutoff_hz: float) -> np.ndarray:
    """The anchor of a reference: as long, not a sample late, at the same level in its pass-band.

    Args:
        wav: Mono, `(n,)`.
        sample_rate_hz: Its rate.
        cutoff_hz: 3500 or 7000.

    Raises:
        ValueError: If the rate cannot hold frequencies above the cutoff, so that nothing would be removed.
    """
    mono = to_mono(wav).astype(np.float64)
    taps = low_pass_taps(sample_rate_hz, cutoff_hz)
    half = len(taps) // 2  # an odd, symmetric filter is late by exactly this, which the cut removes
    return fftconvolve(mono, taps)[half : half + len(mono)].astype(np.float32)


def low_pass_taps(sample_rate_hz: int, cutoff_hz: float) -> np.ndarray:
    """A symmetric Kaiser-windowed filter of odd length, flat to `cutoff_hz`, 70 dB down 500 Hz above it."""
    top_hz = sample_rate_hz / 2
    transition_hz = min(_TRANSITION_HZ, top_hz - cutoff_hz)
    if transition_hz < _NARROWEST_HZ:
        raise ValueError(
            f"a {cutoff_hz / 1000:g} kHz anchor removes nothing at {sample_rate_hz} Hz; "
            f"use references of {2 * (cutoff_hz + _NARROWEST_HZ):g} Hz or more, or leave this anchor out"
        )
    num_taps, _ = kaiserord(_ATTENUATION_DB, transition_hz / top_hz)
    window: Any = ("kaiser", kaiser_beta(_ATTENUATION_DB))
    return np.asarray(firwin(num_taps | 1, cutoff_hz + transition_hz / 2, window=window, fs=sample_rate_hz))


def mask_faults(taps: np.ndarray, sample_rate_hz: int, cutoff_hz: float) -> list[str]:
    """Where a filter leaves the mask of BS.1534-3, in words; empty when it is inside."""
    frequencies_hz, response = freqz(taps, worN=1 << 16, fs=sample_rate_hz)
    level_db = 20 * np.log10(np.maximum(np.abs(response), 1e-12))
    faults = []
    ripple_db = float(np.abs(level_db[frequencies_hz <= cutoff_hz]).max())
    if ripple_db > RIPPLE_DB:
        faults.append(f"ripple {ripple_db:.2f} dB below {cutoff_hz:g} Hz, at most {RIPPLE_DB} dB")
    for above_hz, wanted_db in STOPS_DB:
        beyond = level_db[frequencies_hz >= cutoff_hz + above_hz]
        if beyond.size and -beyond.max() < wanted_db:
            faults.append(f"{-beyond.max():.1f} dB from {cutoff_hz + above_hz:g} Hz, at least {wanted_db:g} dB")
    return faults
