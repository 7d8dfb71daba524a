"""The record of `speed.py` as text, as the tables of docs/performance.md, and as a plot.

    python benchmarks/speed_report.py

writes docs/performance.md between its markers, and docs/images/speed.svg, from benchmarks/results/bench.json again. The
prose there says why; every number of a run stands between the markers.
"""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from taae.config import ModelConfig, load_preset

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
PLOT = ROOT / "docs" / "images" / "speed.svg"
RECORD = ROOT / "benchmarks" / "results" / "bench.json"
DENSE = "float32 dense"
CROP_S = 5.12

Row = dict[str, Any]


def line(row: Row) -> str:
    """One cell while a run goes on."""
    label = f"{row['name']:12} {row['variant']:16} {row.get('audio_s', 0):6g} s"
    if "unavailable" in row:
        return f"{label}  {row['unavailable']}"
    best, median, worst = row["wall_s"]
    memory = "" if row["memory_mb"] is None else f"  {row['memory_mb']:7.0f} MB"
    return f"{label}  wall {best:8.3f} {median:8.3f} {worst:8.3f}  cpu {row['cpu_s'][0]:8.3f}{memory}"


def gflop_per_s(config: ModelConfig) -> float:
    """Billions of multiplications and additions that encoding and decoding a second of audio takes."""
    d, total = config.width, 0.0
    rate = config.sample_rate_hz / config.patch_samples
    total += 2 * 2 * rate * 7 * config.patch_samples * d + 2 * 2 * config.frame_rate_hz * 3 * d * config.latent_dim
    for depth, stride in zip(config.depths, config.strides, strict=True):
        rate /= stride
        if stride > 1:
            total += 2 * 2 * rate * 2 * stride * d * d
        weights = (4 + 3 * config.ff_mult) * d * d
        total += 2 * depth * rate * (2 * weights + 4 * (sum(config.window) + 1) * d)
    return total / 1e9


def tables(record: Row) -> str:
    """Everything between the markers."""
    return "\n\n".join(text for text in (_about(record), *_sections(record)) if text)


def write(record: Row) -> None:
    """Put the tables into the page and draw the plot."""
    begin, end = "<!-- tables: begin -->", "<!-- tables: end -->"
    page = PAGE.read_text(encoding="utf-8")
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{PAGE} must hold {begin!r} and {end!r} once each")
    before, rest = page.split(begin)
    after = rest.split(end)[1]
    PAGE.write_text(f"{before}{begin}\n\n{tables(record)}\n\n{end}{after}", encoding="utf-8")
    PLOT.write_text(plot(record), encoding="utf-8")


def _about(record: Row) -> str:
    machine, others = record["machine"], record["used_by_others"]
    text = (
        f"{record['when']}, commit {record['commit']}: {machine['processor']} (family {machine['family']}; "
        f"{', '.join(machine['vectors'])}), {machine['cores']} cores, {machine['threads']} threads a configuration, "
        f"torch {machine['torch']}, Python {machine['python']}. Best of {record['options']['rounds']} rounds."
    )
    if others is not None:
        text += f" Other processes had {others:.0%} of the machine meanwhile."
    return f"{text} {record.get('note', '')}".rstrip()


def _sections(record: Row) -> Iterable[str]:
    rows = record["rows"]
    for name, title in (("mini", "`mini`"), ("paper-950m", "`paper-950m`")):
        yield _codec_table([row for row in rows if row["kind"] == "codec" and row["name"] == name], name, title)
    yield _peer_table(rows)
    yield _scaling_table(rows)
    yield _streaming_table(record["streaming"])
    yield _training_table(rows)
    yield _target_table(record)


def _length(row: Row) -> str:
    return f"{row['audio_s']:g}" if "audio_s" in row else ""


def _table(title: str, head: str, body: Iterable[str]) -> str:
    lines = list(body)
    rule = "|" + "---|" * head.count("|", 1)
    return "\n".join([f"### {title}", "", head, rule, *lines]) if lines else ""


def _codec_table(rows: list[Row], name: str, title: str) -> str:
    found = [row for row in rows if "wall_s" in row]
    dense = {row["audio_s"]: row["cpu_s"][0] for row in found if row["variant"] == DENSE}
    work = gflop_per_s(load_preset(name))
    body = []
    for row in rows:
        if "wall_s" not in row:
            body.append(f"| {row['variant']} | {_length(row)} | {row['unavailable']} | | | | | |")
            continue
        wall, cpu, length = row["wall_s"], row["cpu_s"][0], row["audio_s"]
        ratio = f"{dense[length] / cpu:.2f}" if length in dense else ""
        gemm = row.get("gemm_gflops_per_cpu_s")
        share = f"{work * length / cpu / gemm:.0%}" if gemm else ""
        body.append(
            f"| {row['variant']} | {length:g} | {wall[0]:.3g} ({wall[1]:.3g}, {wall[2]:.3g}) | "
            f"{length / wall[0]:.3g} | {cpu:.3g} | {ratio} | {share} | {row['memory_mb']:.0f} |"
        )
    head = (
        "| path | audio s | wall s: best (median, worst) | times real time | CPU s | dense CPU / its CPU | "
        "of the matrix product's rate | MB above base |"
    )
    return _table(f"{title}, encode and decode: {work:.1f} GFLOP for a second of audio", head, body)


def _peer_table(rows: list[Row]) -> str:
    ours = {row["audio_s"]: row for row in rows if row["name"] == "mini" and row["variant"] == "float32"}
    body = []
    for row in rows:
        if row["kind"] != "peer":
            continue
        if "wall_s" not in row:
            body.append(f"| {row['name']} | {_length(row)} | {row['unavailable']} | | | |")
            continue
        length, mine = row["audio_s"], ours[row["audio_s"]]
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        body.append(
            f"| {row['name']} | {length:g} | {row['wall_s'][0]:.3g} | {row['cpu_s'][0]:.3g} | "
            f"{row['cpu_s'][0] / mine['cpu_s'][0]:.2f} | {memory} |"
        )
    head = "| codec | audio s | wall s | CPU s | its CPU / CPU of mini float32 | MB above base |"
    return _table("Other codecs; EnCodec, DAC and Mimi are the real classes with random weights", head, body)


def _cells(rows: list[Row], *key: str) -> dict[float, Row]:
    return {
        row["audio_s"]: row for row in rows if (row["kind"], row["name"], row["variant"]) == key and "wall_s" in row
    }


def exponent(cells: dict[float, Row]) -> float:
    """Slope of log CPU time over log length, from 30 s on."""
    points = [(math.log(length), math.log(row["cpu_s"][0])) for length, row in cells.items() if length >= 30]
    mean_x, mean_y = (sum(axis) / len(points) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def _scaling_table(rows: list[Row]) -> str:
    body = []
    for variant in dict.fromkeys(row["variant"] for row in rows if row["kind"] == "codec" and row["name"] == "mini"):
        cells = _cells(rows, "codec", "mini", variant)
        if not {30, 300} <= set(cells):
            continue
        long, short = cells[300], cells[30]
        body.append(
            f"| {variant} | {exponent(cells):.2f} | {long['cpu_s'][0] / short['cpu_s'][0] / 10:.2f} | "
            f"{long['memory_mb'] / 300:.2f} |"
        )
    head = "| path of `mini` | CPU time grows as length to the | RTF 300 s / 30 s | MB per second of audio, 300 s |"
    return _table("Growth with length", head, body)


def _streaming_table(rows: list[Row]) -> str:
    body = [
        f"| {row['model']} | {row['half']} | {row['dtype']} | {row['frames']} | {row['available_ms']} | "
        f"{row['cpu_ms_best']:.1f} | {row['cpu_ms_p50']:.1f} | {row['wall_ms_p50']:.1f} | {row['wall_ms_p99']:.1f} | "
        f"{row['weights_mb']:.0f} | {row['state_kb']:.0f} |"
        for row in rows
    ]
    head = (
        "| model | half | weights | frames a step | ms it may take | CPU ms, best | CPU ms, median | wall ms, median | "
        "99 % | weights MB | state kB |"
    )
    return _table("A step of streaming, both halves at once on a thread each", head, body)


def _training_table(rows: list[Row]) -> str:
    found = [row for row in rows if row["kind"] in ("training", "discriminator") and "wall_s" in row]
    autoencoder = "autoencoder of `mini`, 8 crops of 5.12 s, spectral losses, bf16 autocast"
    body = []
    for row in found:
        name = autoencoder if row["kind"] == "training" else f"discriminator, 8 crops of 2 s in turn: {row['variant']}"
        wall_s, cpu_s = row["wall_s"][0], row["cpu_s"][0]
        rates = f"{row['audio_s'] / wall_s:.3g} | {row['audio_s'] / cpu_s:.3g}"
        body.append(f"| {name} | {wall_s:.3g} | {cpu_s:.3g} | {rates} |")
    head = "| step of training | wall s | CPU s | audio s a second | audio s a CPU second |"
    return _table("Training", head, body)


def _target_table(record: Row) -> str:
    rows, body = record["rows"], []

    def cpu(variant: str, length: float, name: str = "paper-950m") -> float:
        cells = _cells(rows, "codec", name, variant)
        return cells[length]["cpu_s"][0] if length in cells else math.nan

    def add(what: str, target: str, value: float, is_met: bool, text: str) -> None:
        measured = "not measured" if math.isnan(value) else text.format(value)
        verdict = "" if math.isnan(value) else ("yes" if is_met else "**no**")
        body.append(f"| {what} | {target} | {measured} | {verdict} |")

    def ratio(what: str, target: float, value: float) -> None:
        add(what, f">= {target:g}", value, value >= target, "{:.2f}")

    ratio("950M, 30 s: CPU of float32 dense / bfloat16", 4.5, cpu(DENSE, 30) / cpu("bfloat16", 30))
    ratio("950M, 30 s: CPU of bfloat16 plain / bfloat16", 1.4, cpu("bfloat16 plain", 30) / cpu("bfloat16", 30))
    fast = _cells(rows, "codec", "paper-950m", "bfloat16").get(30)
    gflop = gflop_per_s(load_preset("paper-950m")) * 30
    value = gflop / fast["cpu_s"][0] / fast["gemm_gflops_per_cpu_s"] if fast else math.nan
    add("950M, 30 s: share of the matrix product's rate", ">= 65 %", value, value >= 0.65, "{:.0%}")
    for variant in ("float32", "bfloat16"):
        value = cpu(variant, 300, "mini") / cpu(variant, 30, "mini") / 10
        add(f"mini {variant}: RTF(300 s) / RTF(30 s)", "<= 1.1", value, value <= 1.1, "{:.2f}")
    ratio("mini, 300 s: CPU of float32 dense / float32", 3, cpu(DENSE, 300, "mini") / cpu("float32", 300, "mini"))
    long = _cells(rows, "codec", "mini", "bfloat16").get(300)
    value = long["memory_mb"] / 300 if long else math.nan
    add("mini bfloat16: MB above base per second of audio", "<= 4", value, value <= 4, "{:.2f}")
    for model, dtype, limit in (("240m-causal", "bfloat16", 30), ("240m-causal", "int8", 20)):
        steps = [row for row in record["streaming"] if (row["model"], row["dtype"]) == (model, dtype)]
        value = max((row["cpu_ms_best"] for row in steps), default=math.nan)
        add(f"streaming 240M {dtype}: CPU ms of a half", f"<= {limit}", value, value <= limit, "{:.1f}")
    for dtype in ("bfloat16", "int8"):
        steps = [row for row in record["streaming"] if (row["model"], row["dtype"]) == ("950m-causal", dtype)]
        value = max((row["cpu_ms_best"] / row["available_ms"] for row in steps), default=math.nan)
        add(f"streaming 950M {dtype}, 320 ms a step: CPU of a half / time", "< 1", value, value < 1, "{:.2f}")
    cells = _cells(rows, "codec", "mini", "float32")
    value = 30 / cells[30]["cpu_s"][0] if 30 in cells else math.nan
    add("mini float32, 30 s: times real time, by CPU time of one core", ">= 60", value, value >= 60, "{:.0f}")
    steps = [row for row in rows if row["kind"] == "discriminator" and "wall_s" in row]
    value = steps[0]["cpu_s"][0] / steps[1]["cpu_s"][0] if len(steps) == 2 else math.nan
    ratio("discriminator step: CPU of full float32 / optimised", 6, value)
    steps = [row for row in rows if row["kind"] == "training" and "wall_s" in row]
    value = steps[0]["audio_s"] / min(steps[0]["wall_s"]) if steps else math.nan
    add("training an autoencoder of 8M: audio s a second, wall", ">= 60", value, value >= 60, "{:.0f}")
    return _table("Targets", "| what | target | measured | met |", body)


def plot(record: Row) -> str:
    """CPU seconds over seconds of audio, both logarithmic, as SVG."""
    curves = {
        f"mini {variant}": _cells(record["rows"], "codec", "mini", variant)
        for variant in (DENSE, "float32", "bfloat16", "int8")
    }
    peers = dict.fromkeys(row["name"] for row in record["rows"] if row["kind"] == "peer")
    curves |= {name: _cells(record["rows"], "peer", name, "-") for name in peers}
    curves |= {
        f"950M {variant}": _cells(record["rows"], "codec", "paper-950m", variant) for variant in (DENSE, "bfloat16")
    }
    points = {
        name: [(length, row["cpu_s"][0]) for length, row in cells.items()] for name, cells in curves.items() if cells
    }
    lengths = [x for curve in points.values() for x, _ in curve]
    times = [y for curve in points.values() for _, y in curve]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    left, right, top, bottom = 70.0, 560.0, 20.0, 400.0
    x_span = math.log10(min(lengths)), math.log10(max(lengths) * 1.001)

    def place(x: float, y: float) -> tuple[float, float]:
        along = (math.log10(x) - x_span[0]) / (x_span[1] - x_span[0])
        return left + along * (right - left), bottom - (math.log10(y) - low) / (high - low) * (bottom - top)

    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 450" font-family="sans-serif" font-size="12">',
        '<rect width="760" height="450" fill="white"/>',
    ]
    for power in range(low, high + 1):
        y = place(min(lengths), 10.0**power)[1]
        parts.append(f'<path d="M{left} {y:.1f}H{right}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for length in sorted(set(lengths)):
        x = place(length, 10.0**low)[0]
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{length:g}</text>')
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 40}" text-anchor="middle">seconds of audio</text>')
    middle = (top + bottom) / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "processor seconds to encode and decode</text>"
    )
    blues, others = ("#1f4e9c", "#2f8fd0", "#63b7e6"), ("#b58900", "#8c564b", "#d62728", "#9467bd", "#2ca02c")
    colours = ("#888888", *blues, *others, "#444444", "#000000")
    label_y = top
    for (name, curve), colour in sorted(
        zip(points.items(), colours, strict=False), key=lambda item: -item[0][1][-1][1]
    ):
        places = [place(*point) for point in sorted(curve)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in places]
        label_y += 20
        parts.append(f'<rect x="{right + 24}" y="{label_y - 9}" width="14" height="4" fill="{colour}"/>')
        parts.append(f'<text x="{right + 44}" y="{label_y - 3}">{name}</text>')
    return "\n".join([*parts, "</svg>\n"])


if __name__ == "__main__":
    write(json.loads(RECORD.read_text()))
