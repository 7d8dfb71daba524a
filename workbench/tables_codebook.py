"""Table 9: how evenly the codes are used, and what Huffman coding saves."""

from typing import Any

import numpy as np

from taae.config import BottleneckSpec
from taae.fsq import tokenize
from taae.rates import CodebookUse, codebook_use, token_rate
from workbench import explore, published, rows
from workbench.measured import Bench
from workbench.published import Number
from workbench.verdicts import TOLERANCES, Cell, Outcome, close, exact, not_run, trend

_Counted = tuple[BottleneckSpec, list[CodebookUse]]  # one use a stage


def table09(bench: Bench, *, tokens_per_code: int = 10) -> Outcome:
    """Use of the codebook and Huffman coding, of the tokens of all clips in the bench's language.

    Args:
        bench: Its clips give the tokens.
        tokens_per_code: With less tokens for each code of the codebook, entropy reads too low and is not compared.
    """
    codec = bench.codec
    latents = explore.latents_of(codec, (_wav(clip, codec.sample_rate_hz) for clip in bench.clips()))
    counted: dict[str, _Counted] = {}
    for label, text in (("400", "1x6^6"), ("700", "2x5^6")):
        spec = BottleneckSpec.parse(text)
        uses = [codebook_use(stage, spec.codebook_size) for stage in tokenize(latents[None], spec)[0].numpy().T]
        counted[f"TAAE ({label} BPS)"] = (spec, uses)
    cells: list[Cell] = []
    notes: list[str] = []
    for label, (spec, uses) in counted.items():
        bits = " + ".join(f"{use.huffman_bits:.2f}" for use in uses)
        notes.append(
            f"{label}: {uses[0].num_tokens:,} tokens, {uses[0].num_used:,} of {spec.codebook_size:,} codes occur; "
            f"entropy {' and '.join(f'{use.entropy_bits:.2f}' for use in uses)} bit, Huffman {bits} bit. "
            f"With N tokens the entropy cannot exceed log2 N = {np.log2(uses[0].num_tokens):.2f} bit."
        )
    for number in published.table("table09").cells:
        label = next((label for label in counted if number.row.startswith(label)), None)
        if label is None:
            cells.append(_peer(number))
            continue
        spec, uses = counted[label]
        if number.column == "Codebook Size":
            cells.append(exact(number, spec.codebook_size, f"Eq. 6 for {spec}"))
        elif number.column == "BPS":
            cells.append(exact(number, spec.bits_per_second(codec.frame_rate_hz), f"Eq. 5 for {spec}"))
        elif uses[0].num_tokens < tokens_per_code * spec.codebook_size:
            need = f"{tokens_per_code * spec.codebook_size:,}"
            cells.append(not_run(number, f"needs {need} tokens to compare, got {uses[0].num_tokens:,}; see the notes"))
        else:
            cells.append(_ours(number, uses, counted, codec.frame_rate_hz, bench))
    return rows.finished("table09", cells, bench, notes=notes)


def _ours(
    number: Number, uses: list[CodebookUse], counted: dict[str, _Counted], frame_rate_hz: float, bench: Bench
) -> Cell:
    reason = f"{bench.describe()}, {uses[0].num_tokens:,} tokens"
    if number.column == "Huffman-Coded":
        ours = frame_rate_hz * sum(use.huffman_bits for use in uses)
    else:
        ours = uses[int(number.row[-1]) - 1].normalized_entropy
    if bench.is_papers_model:
        return close(number, ours, TOLERANCES[str(number.metric)], reason)
    others = []
    for other in published.table("table09").cells:
        label = next((label for label in counted if other.row.startswith(label)), None)
        if label is None or other.column != number.column or other.id == number.id or other.value is None:
            continue
        its = counted[label][1]
        if number.column == "Huffman-Coded":
            others.append((other.value, frame_rate_hz * sum(use.huffman_bits for use in its)))
        else:
            others.append((other.value, its[int(other.row[-1]) - 1].normalized_entropy))
    return trend(number, ours, others, reason)


def _peer(number: Number) -> Cell:
    name = number.row.split(" ")[0]
    if number.column == "Codebook Size":
        stage = 1 if "Acoustic" in number.row else 0
        row = next(row for row in rows.STREAMS if row.startswith(name))
        return exact(number, rows.STREAMS[row][0][stage], "of the codec's description")
    if number.column == "BPS":
        sizes, frame_rate_hz = rows.STREAMS[f"{name} {number.printed}"]
        return exact(number, token_rate(sizes, float(frame_rate_hz)).bits_per_second, "Eq. 5 for its codebooks")
    return not_run(
        number, rows.missing_codec(rows.NAMES[name]) or "its tokens were not counted: only TAAE's are, so far"
    )


def _wav(clip: Any, sample_rate_hz: int) -> np.ndarray:
    from taae.audio import loudness_gain, resample
    from taae.evaluate import load_mono

    wav, rate_hz = load_mono(clip.path)
    wav = resample(wav, rate_hz, sample_rate_hz)
    return (wav * loudness_gain(wav, sample_rate_hz)).astype(np.float32)
