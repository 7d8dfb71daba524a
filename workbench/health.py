"""Is my GAN curve normal? A training run as one page: judgements in words, and the curves behind them.

`python -m workbench.health RUN` writes RUN/health.html, which needs no network. The limits are rules of thumb; each
judgement says what it looked at.
"""

import html
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from taae.files import write_atomic
from workbench.run_log import Run, read_run

Verdict = Literal["normal", "watch", "act"]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem; border-bottom: 1px solid #ccc; }
.normal, .watch, .act { font-weight: 600; white-space: nowrap; }
.normal { color: #1b6e2e; } .watch { color: #8a5000; } .act { color: #a8071a; }
"""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One judgement.

    Attributes:
        topic: What was looked at.
        verdict: "normal", "watch" (look again later) or "act".
        value: The numbers, in words.
        advice: What they mean, and what to do.
    """

    topic: str
    verdict: Verdict
    value: str
    advice: str


def findings(run: Run) -> list[Finding]:
    """Judge the last tenth of a run."""
    judges = (_losses, _accuracy, _matching, _gradients, _codebook, _skipped)
    return [finding for judge in judges for finding in judge(run)]


def _losses(run: Run) -> list[Finding]:
    found = []
    for name in ("reconstruction", "mel", "stft", "perceptual"):
        _, values = run.curve(name)
        if not len(values):
            continue
        first, last = float(np.mean(values[:3])), float(np.mean(run.tail(name)))
        is_falling = last < 0.98 * first
        found.append(
            Finding(
                topic=f"Loss: {name}",
                verdict="normal" if is_falling else "watch",
                value=f"{first:.3g} at first, {last:.3g} now",
                advice="It falls."
                if is_falling
                else "It has not fallen. Early in a run that is normal; later, lower the learning rates.",
            )
        )
    return found


def _accuracy(run: Run) -> list[Finding]:
    scales = {name.removeprefix("accuracy/"): float(np.mean(run.tail(name))) for name in run.names("accuracy/")}
    if not scales:
        return []
    value = ", ".join(f"{name}: {accuracy:.2f}" for name, accuracy in scales.items())
    has_hinge = float((run.config.get("adversarial") or {}).get("adversarial_weight", 0)) > 0
    if max(scales.values()) < 0.53:
        verdict, advice = (
            "watch",
            (
                "No scale tells real from decoded speech (0.5 is chance): normal for the first hundreds of steps. "
                "Later, look at its gradient norm: near 0 it learns nothing, so raise discriminator_lr."
            ),
        )
    elif min(scales.values()) > 0.97:
        verdict, advice = (
            ("act" if has_hinge else "watch"),
            (
                "Every scale has won. With the adversarial term this starves the autoencoder: lower discriminator_lr. "
                "With feature matching alone (Eq. 7), as in the paper, its features go on teaching."
            ),
        )
    else:
        verdict, advice = "normal", "Between chance (0.5) and certainty (1): both networks have something to learn."
    return [Finding(topic="Discriminator accuracy by scale", verdict=verdict, value=value, advice=advice)]


def _matching(run: Run) -> list[Finding]:
    _, values = run.curve("feature_matching")
    if not len(values):
        return []
    now, middle = float(np.mean(run.tail("feature_matching"))), float(np.median(values[len(values) // 2 :]))
    is_rising = now > 1.5 * middle
    return [
        Finding(
            topic="Feature matching",
            verdict="watch" if is_rising else "normal",
            value=f"{values[0]:.3g} at first, {np.max(values):.3g} at most, {now:.3g} now",
            advice="It runs away in the second half of the run: the discriminator learns faster than the autoencoder "
            "can follow. Lower discriminator_lr."
            if is_rising
            else "It rises while the discriminator wakes up, and then levels off or falls.",
        )
    ]


def _gradients(run: Run) -> list[Finding]:
    found, limit = [], float(run.config.get("gradient_norm", 1.0))
    for name, topic in (("norm", "autoencoder"), ("discriminator_norm", "discriminator")):
        values = run.curve(name)[1]
        if not len(values):
            continue
        late = values[len(values) // 2 :]
        typical, largest = float(np.median(late)), float(np.max(late))
        clipped = float(np.mean(late > limit))
        value = f"{typical:.3g} typical, {largest:.3g} at most, {clipped:.0%} of the rows above the limit of {limit:g}"
        if typical < 1e-5:
            verdict, advice = "act", "Next to nothing reaches the weights: the loss is flat, or a branch is dead."
        elif largest > 20 * typical:
            verdict, advice = (
                "watch",
                "There are spikes. Clipping catches them; if losses jump with them, lower the rate.",
            )
        elif clipped > 0.9:
            verdict, advice = (
                "watch",
                "Almost every step is clipped, so gradient_norm sets the pace. AdamW forgives it.",
            )
        else:
            verdict, advice = "normal", "Steady."
        found.append(Finding(topic=f"Gradient norm of the {topic}", verdict=verdict, value=value, advice=advice))
    return found


def _codebook(run: Run) -> list[Finding]:
    if not run.names("codebook/entropy"):
        return []
    entropy, lowest, distinct = (
        float(np.mean(run.tail(f"codebook/{name}"))) for name in ("entropy", "lowest", "distinct")
    )
    value = (
        f"{entropy:.0%} of the entropy of even use, {lowest:.0%} in the least used dimension; {distinct:.0%} of the "
    )
    value += "frames of a batch have a code of their own"
    if lowest < 0.15:
        verdict, advice = "act", "A dimension of the latents is all but constant: it carries no information."
    elif entropy < 0.5:
        verdict, advice = "watch", "Few levels are used. Early in a run that is normal, since latents start near 0."
    else:
        verdict, advice = "normal", "Latents spread over the levels."
    return [Finding(topic="Codebook use", verdict=verdict, value=value, advice=advice)]


def _skipped(run: Run) -> list[Finding]:
    num_skipped = sum("skipped" in row for row in run.rows)
    if not run.config.get("is_fp16"):
        return []
    share = num_skipped / len(run.rows)
    return [
        Finding(
            topic="float16",
            verdict="watch" if share > 0.2 else "normal",
            value=f"{share:.0%} of the rows hold a step that was skipped",
            advice="Gradients overflow often; is_bf16 has no such limit."
            if share > 0.2
            else "A skipped step now and then is how the loss scale finds its place.",
        )
    ]


def figures(run: Run) -> dict[str, Any]:
    """Plotly figures by title.

    Raises:
        RuntimeError: If plotly is not installed.
    """
    try:
        from plotly import graph_objects as go
    except ImportError as error:
        raise RuntimeError("the page needs plotly: pip install 'taae-workbench[notebooks]'") from error

    def lines(names: Sequence[str], prefix: str = "", *, y: str, is_log: bool = False) -> Any:
        figure = go.Figure()
        for name in names:
            steps, values = run.curve(name)
            figure.add_scatter(x=steps, y=values, name=name.removeprefix(prefix), mode="lines")
        figure.update_layout(xaxis_title="step", yaxis_title=y, yaxis_type="log" if is_log else "linear")
        return figure

    made = {}
    losses = [name for name in _LOSSES if len(run.curve(name)[0])]
    made["Losses of the autoencoder"] = lines(
        losses, y="loss", is_log=all(run.curve(name)[1].min() > 0 for name in losses)
    )
    if names := run.names("accuracy/"):
        made["Discriminator accuracy by scale (0.5 is chance)"] = figure = lines(names, "accuracy/", y="share right")
        figure.add_hrect(y0=0.53, y1=0.97, opacity=0.08, line_width=0)
        figure.update_yaxes(range=[0, 1.02])
    if names := run.names("matching/"):
        made["Feature matching by layer, mean over scales"] = _layers(run, go, names)
        made["Feature matching by scale and layer, now"] = _grid(run, go, names)
    for prefix, title in (("norm", "autoencoder"), ("discriminator_norm", "discriminator")):
        if names := [name for name in run.names(prefix) if name.split("/")[0] == prefix]:
            made[f"Gradient norms of the {title}"] = lines(names, y="norm before clipping", is_log=True)
    if names := run.names("codebook/"):
        made["Codebook use"] = lines(names, "codebook/", y="share")
    for name in next(iter(run.maps.values()), {}):
        if name != "frequencies_hz":
            made[f"Sensitivity of the loss “{name}” by frequency, over the run (Eq. 12)"] = _profile(run, go, name)
            made[f"Sensitivity of the loss “{name}” on one example, now (Eq. 12)"] = _map(run, go, name)
    return made


_LOSSES = ("feature_matching", "perceptual", "reconstruction", "mel", "magnitude", "complex", "stft", "wav", "ctc")


def _layers(run: Run, go: Any, names: Sequence[str]) -> Any:
    figure = go.Figure()
    for layer in sorted({name.split("/")[2] for name in names}, key=int):
        of_layer = [name for name in names if name.split("/")[2] == layer]
        rows = [(row["step"], [row[name] for name in of_layer if name in row]) for row in run.rows]
        rows = [(step, float(np.mean(values))) for step, values in rows if values]
        figure.add_scatter(x=[step for step, _ in rows], y=[value for _, value in rows], name=f"layer {layer}")
    return figure.update_layout(xaxis_title="step", yaxis_title="normalised distance (Eq. 7)")


def _grid(run: Run, go: Any, names: Sequence[str]) -> Any:
    scales = list(dict.fromkeys(name.split("/")[1] for name in names))
    layers = sorted({name.split("/")[2] for name in names}, key=int)
    values = [[float(np.mean(run.tail(f"matching/{scale}/{layer}"))) for layer in layers] for scale in scales]
    figure = go.Figure(go.Heatmap(z=values, x=[f"layer {layer}" for layer in layers], y=scales, colorscale="Viridis"))
    return figure.update_layout(yaxis_title="scale", yaxis_type="category")


def _profile(run: Run, go: Any, name: str) -> Any:
    steps = [step for step, arrays in run.maps.items() if name in arrays]
    frequencies_hz = run.maps[steps[0]]["frequencies_hz"]
    # Each step by its own mean: where it looks is the question, not how steep the loss is.
    columns = [_decibels(run.maps[step][name].mean(axis=1) / run.maps[step][name].mean()) for step in steps]
    heat = go.Heatmap(x=[str(step) for step in steps], y=frequencies_hz, z=np.stack(columns, axis=1), **_COLOURS)
    return go.Figure(heat).update_layout(xaxis_title="step", xaxis_type="category", yaxis_title="frequency in Hz")


def _map(run: Run, go: Any, name: str) -> Any:
    step = max(step for step, arrays in run.maps.items() if name in arrays)
    values = run.maps[step][name]
    heat = go.Heatmap(y=run.maps[step]["frequencies_hz"], z=_decibels(values / values.mean()), **_COLOURS)
    return go.Figure(heat).update_layout(xaxis_title=f"frame, step {step}", yaxis_title="frequency in Hz")


_COLOURS = {"colorscale": "Viridis", "zmin": -30, "zmax": 20, "colorbar": {"title": "dB re mean"}}


def _decibels(ratio: np.ndarray) -> np.ndarray:
    return 20 * np.log10(np.maximum(ratio, 1e-6))


def page(run: Run) -> str:
    """The whole page as HTML, with plotly's code inside.

    Raises:
        RuntimeError: If plotly is not installed.
    """
    judged = findings(run)
    worst = next((verdict for verdict in ("act", "watch") if any(f.verdict == verdict for f in judged)), "normal")
    answer = {"normal": "Yes.", "watch": "Mostly; see what to watch.", "act": "No; see what to act on."}[worst]
    rows = "".join(
        f"<tr><td>{html.escape(f.topic)}</td><td class='{f.verdict}'>{f.verdict}</td><td>{html.escape(f.value)}</td>"
        f"<td>{html.escape(f.advice)}</td></tr>"
        for f in judged
    )
    parts = []
    for number, (title, figure) in enumerate(figures(run).items()):
        figure.update_layout(height=420, margin={"t": 20})
        drawn = figure.to_html(full_html=False, include_plotlyjs=number == 0)
        parts.append(f"<h2>{html.escape(title)}</h2>{drawn}")
    name, step = html.escape(run.name), run.rows[-1]["step"]
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Health of {name}</title>"
        f"<style>{_STYLE}</style></head><body><h1>Health of {name} at step {step}</h1>"
        f"<p>Is this normal? <strong class='{worst}'>{answer}</strong> The last tenth of the log is judged by rules of "
        f"thumb.</p><table><thead><tr><th>What</th><th>Verdict</th><th>Measured</th><th>Meaning</th></tr></thead>"
        f"<tbody>{rows}</tbody></table>{''.join(parts)}</body></html>\n"
    )


def main(arguments: Sequence[str]) -> int:
    """`python -m workbench.health RUN [OUT]`: write the page and print the judgements."""
    if len(arguments) not in (1, 2):
        print("usage: python -m workbench.health RUN [OUT.html]", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    out = Path(arguments[1]) if len(arguments) == 2 else folder / "health.html"
    try:
        run = read_run(folder)
        write_atomic(out, page(run).encode(), force=True)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"health: {error}", file=sys.stderr)
        return 1
    for finding in findings(run):
        print(f"{finding.verdict:7} {finding.topic}: {finding.value}")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
