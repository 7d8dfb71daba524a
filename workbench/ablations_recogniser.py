"""Train the small recogniser that stands in for WavLM in the ablation of the perceptual loss."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from taae.data import pack
from taae.files import write_atomic
from taae.perceptual import CTCHead
from taae.recogniser import Recogniser, RecogniserConfig

_RATE_HZ, _HOP = 16_000, 640
_HELD_OUT = 64  # utterances that training never sees


def train_recogniser(
    manifest: Path,
    out: Path,
    *,
    num_steps: int,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    longest_s: float = 10.0,
    seed: int = 0,
    say: Callable[[str], None] = print,
) -> dict[str, float]:
    """Train on the transcripts of a manifest and write `out`, with report.json on utterances that were held out.

    Args:
        manifest: Lines with `transcript`; those with less than 20 letters (commands) are left out.
        out: Folder of the recogniser; its neighbour "packed" holds the decoded speech.
        num_steps: Of `batch_size` utterances.
        batch_size: See above.
        learning_rate: Highest, of AdamW; up over 50 steps, and down to zero over the last 40 %.
        longest_s: Longer utterances are left out.
        seed: Of weights and order.
        say: Gets lines of progress.

    Returns:
        report.json: "ctc" per letter, and "letter_error_rate" of the likeliest letters, both on what was held out.
    """
    torch.manual_seed(seed)
    recogniser = Recogniser(RecogniserConfig())
    held, rows, samples = _utterances(manifest, out, longest_s, recogniser.head, seed)
    say(f"recogniser: {len(rows)} utterances, {num_steps} steps")
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50, 2.5 * (1 - step / num_steps))
    )
    rng, losses = np.random.default_rng(seed), []
    for step in range(num_steps):
        loss = _loss(recogniser, _batch(rows, samples, rng.integers(len(rows), size=batch_size)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(recogniser.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0:
            say(f"recogniser: step {step + 1}, CTC {np.mean(losses[-100:]):.2f} nat a letter")
    report = _report(recogniser.eval(), held, samples) | {"num_steps": num_steps, "num_utterances": len(rows)}
    recogniser.save(out)
    write_atomic(out / "report.json", (json.dumps(report, indent=1) + "\n").encode(), force=True)
    return report


def _utterances(manifest: Path, out: Path, longest_s: float, head: CTCHead, seed: int) -> tuple[list, list, np.ndarray]:
    """Held out and training utterances, each (offset, samples, transcript) into the packed speech, and that."""
    packed = pack(manifest, out.parent / "packed", _RATE_HZ)
    places = {clip["id"]: clip for clip in json.loads((packed / "index.json").read_text())["clips"]}
    rows = []
    for line in manifest.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        text, clip = row.get("transcript") or "", places.get(row["id"])
        if clip and len(text) >= 20 and row["seconds"] <= longest_s:
            if head.is_readable(text, clip["samples"] // _HOP):
                rows.append((clip["offset"], clip["samples"], text))
    if len(rows) < 2 * _HELD_OUT:
        raise ValueError(f"{manifest} has {len(rows)} utterances with transcripts; {2 * _HELD_OUT} are needed")
    order = np.random.default_rng(seed).permutation(len(rows))
    shuffled = [rows[place] for place in order]
    return shuffled[:_HELD_OUT], shuffled[_HELD_OUT:], np.memmap(packed / "clips.i2", dtype="<i2", mode="r")


def _batch(rows: list, samples: np.ndarray, places: np.ndarray) -> tuple[torch.Tensor, list[str], list[int]]:
    chosen = [rows[place] for place in places]
    longest = -(-max(count for _, count, _ in chosen) // _HOP) * _HOP
    wav = np.zeros((len(chosen), 1, longest), dtype=np.float32)
    for line, (offset, count, _) in enumerate(chosen):
        wav[line, 0, :count] = samples[offset : offset + count].astype(np.float32) * (2 / 32767)
    return torch.from_numpy(wav), [text for _, _, text in chosen], [count // _HOP for _, count, _ in chosen]


def _loss(recogniser: Recogniser, batch: tuple[torch.Tensor, list[str], list[int]]) -> torch.Tensor:
    wav, texts, num_frames = batch
    return recogniser.head.loss(recogniser(wav)[-1], texts, num_frames)


@torch.no_grad()
def _report(recogniser: Recogniser, held: list, samples: np.ndarray) -> dict[str, float]:
    losses, errors, letters = [], 0, 0
    for first in range(0, len(held), 8):
        wav, texts, num_frames = _batch(held, samples, np.arange(first, min(first + 8, len(held))))
        latents = recogniser(wav)[-1]
        losses.append(float(recogniser.head.loss(latents, texts, num_frames)))
        for line, (text, count) in enumerate(zip(texts, num_frames, strict=True)):
            wanted = recogniser.head.encode(text)
            heard = recogniser.head.encode(recogniser.head.transcribe(latents[line : line + 1, :count])[0])
            errors += edit_distance(wanted, heard)
            letters += len(wanted)
    return {"ctc": float(np.mean(losses)), "letter_error_rate": errors / letters}


def edit_distance(first: list[int], second: list[int]) -> int:
    """Insertions, deletions and substitutions that turn one list into the other."""
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, start=1):
        before, row[0] = row[0], i
        for j, b in enumerate(second, start=1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]
