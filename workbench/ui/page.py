"""The page: choose a recording and bitrates, press once, and switch between the versions. Needs the extra `app`.

Gradio carries files, queue and progress; what people see is drawn by `static/`. All dynamic text reaches the page as
JSON and is set with textContent, because Gradio evaluates the templates of `gr.HTML`.
"""

import logging
import math
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import uvicorn
from fastapi.responses import HTMLResponse
from gradio import networking
from gradio.utils import get_upload_folder

import workbench.listening
from taae import audio
from workbench.compare import (
    BOTTLENECKS,
    MAX_FILE_BYTES,
    MAX_SECONDS,
    Comparison,
    SourceError,
    bitrate_label,
    compare,
    is_taae,
    open_taae,
)
from workbench.listening.server import ADMIN_TOKEN_VARIABLE, build_server
from workbench.ui import live, token_edit
from workbench.ui.make_examples import EXAMPLES, EXAMPLES_DIR

if TYPE_CHECKING:
    from taae.codec import Codec

STATIC_DIR = Path(__file__).parent / "static"
ENGINE_DIR = Path(workbench.listening.__file__).parent / "static"
PLAYER_SCRIPTS = ("player.js", "spectrum.js", "pictures.js", "table.js", "abx.js", "tools.js", "tokens.js", "view.js")
CHOSEN_AT_FIRST = ("1x6^6", "2x5^6", "continuous")
KEEP_FILES_S = 2 * 3600

logger = logging.getLogger(__name__)


def build_app(codec: "Codec") -> gr.Blocks:
    """The page for one loaded model; `launch_options` belong to its `launch`."""
    gr.set_static_paths([EXAMPLES_DIR])
    with gr.Blocks(
        title="TAAE workbench", analytics_enabled=False, delete_cache=(KEEP_FILES_S // 2, KEEP_FILES_S)
    ) as page:
        gr.HTML(_header(codec), apply_default_css=False)
        with gr.Row(elem_classes="choose"):
            card = gr.HTML(
                html_template='<section class="taae card" aria-label="Recording"></section>',
                js_on_load=_scripts("recorder.js", "source.js", "mount_source.js"),
                apply_default_css=False,
                options={
                    "examples": [{"title": example.title, "path": str(example.path)} for example in EXAMPLES],
                    "maxBytes": MAX_FILE_BYTES,
                    "maxSeconds": MAX_SECONDS,
                },
            )
            with gr.Column(elem_classes="taae card bitrates"):
                bitrates = gr.CheckboxGroup(
                    choices=_choices(codec),
                    value=[spec for spec in CHOSEN_AT_FIRST if spec in BOTTLENECKS],
                    label="Bitrates",
                    elem_id="bitrates",
                )
                press = gr.Button("Listen", variant="primary", elem_id="listen")
        player = gr.HTML(
            html_template='<section class="taae player" aria-label="Comparison"></section>',
            js_on_load=_scripts(*PLAYER_SCRIPTS, "mount_player.js"),
            apply_default_css=False,
        )
        recording = gr.File(label="Recording or .taae file", visible=False)
        report = gr.JSON(label="Report", visible=False)
        files = gr.File(label="Files", file_count="multiple", visible=False)

        def listen(
            recording: str | None,
            bitrates: list[str],
            progress: gr.Progress = gr.Progress(),  # noqa: B008 (Gradio knows it by this default)
        ) -> tuple[dict[str, Any], list[str]]:
            return _listen(codec, recording, bitrates, progress)

        card.file(None, card, recording, js="(value) => JSON.parse(value)")
        press.click(
            listen,
            [recording, bitrates],
            [report, files],
            api_name="listen",
            concurrency_id="codec",
            concurrency_limit=1,
            show_progress_on=player,
        ).success(None, [report, files], player, js="(report, files) => JSON.stringify({ report, files })")
    return page


def launch_options() -> dict[str, Any]:
    """Keyword arguments for `launch`: looks, limits, and nothing that leaves the machine."""
    return {
        "css": (STATIC_DIR / "page.css").read_text(encoding="utf-8"),
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        "max_file_size": MAX_FILE_BYTES,
        "blocked_paths": [str(Path.cwd() / ".git"), str(Path.cwd() / ".venv")],
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "show_error": True,
    }


def serve(
    codec: "Codec",
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    listening: str | Path = "runs/listening",
) -> None:
    """Serves this page at `/` and the listening tests at `/t/<study>` and `/admin` until it is interrupted.

    Args:
        codec: What the page plays.
        host: Address to listen on.
        port: Its port.
        share: Open a public tunnel through Gradio's servers.
        listening: Folder of the listening tests; made where it is missing.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    admin_token = os.environ.get(ADMIN_TOKEN_VARIABLE, "")
    with tempfile.TemporaryDirectory(prefix="taae-") as folder, socket.socket() as listener:
        os.environ.setdefault("GRADIO_TEMP_DIR", folder)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        server = build_server(listening, admin_token=admin_token)
        server.router.routes.extend(live.routes(codec))
        server.include_router(token_edit.routes(codec))
        server.add_api_route("/share-template", share_template, response_class=HTMLResponse)
        options = launch_options()
        options["blocked_paths"].append(str(Path(listening).resolve()))
        page = build_app(codec).queue(max_size=32)
        app = gr.mount_gradio_app(server, page, "/", server_name=host, server_port=port, **options)
        address = f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"
        print(f"The page is at {address}, the listening tests are at {address}/admin")
        if not admin_token:  # once, and only where the server was started
            print(f"Admin, for this run only: {address}/admin#token={server.state.admin_token}")
        if share:
            print("Public address:", networking.setup_tunnel(host, port, secrets.token_urlsafe(32), None, None))
        sys.stdout.flush()
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])


def _listen(
    codec: "Codec", recording: str | None, bitrates: Sequence[str], progress: gr.Progress
) -> tuple[dict[str, Any], list[str]]:
    if not recording:
        raise _told("Choose a recording first, or wait until it is sent.")
    path = Path(recording)

    def report(fraction: float, what: str) -> None:
        progress(fraction, desc=what)

    try:
        comparison = open_taae(codec, path, report) if is_taae(path) else compare(codec, path, bitrates, report)
        return _files(comparison)
    except SourceError as error:
        raise _told(str(error)) from error
    except FileNotFoundError as error:
        raise _told("The server keeps recordings for two hours and no longer has this one. Choose it again.") from error
    except Exception as error:
        logger.exception("the comparison of %s failed", path.name)
        message = "Something went wrong on the server; its log has the details. Your recording is still here."
        raise _told(message) from error


def _told(message: str) -> gr.Error:
    """One sentence on the page, and no traceback in the log."""
    return gr.Error(message[:1].upper() + message[1:], duration=20, print_exception=False)


def _files(comparison: Comparison) -> tuple[dict[str, Any], list[str]]:
    """Writes everything to be heard or saved into Gradio's cache, and names it in the report."""
    folder = Path(get_upload_folder()) / secrets.token_hex(16)
    folder.mkdir(parents=True)
    stem = "".join(letter if letter.isalnum() else "-" for letter in comparison.name)[:60].strip("-") or "recording"
    report, paths = comparison.as_dict(), []

    def write_wav(name: str, wav: Any) -> str:
        audio.save_wav(folder / name, wav, comparison.sample_rate_hz)
        paths.append(str(folder / name))
        return name

    report["original_file"] = None
    report["original_loudness_lufs"] = None
    if comparison.original is not None:
        report["original_loudness_lufs"] = _loudness(comparison.original, comparison.sample_rate_hz)
        report["original_file"] = write_wav(f"{stem}-original.wav", comparison.original)
    for version, entry in zip(comparison.versions, report["versions"], strict=True):
        tag = version.bottleneck.replace("^", "-")
        entry["wav_file"] = write_wav(f"{stem}-{tag}.wav", version.wav)
        entry["loudness_lufs"] = _loudness(version.wav, comparison.sample_rate_hz)
        entry["taae_file"] = None
        if version.data is not None:
            entry["taae_file"] = f"{stem}-{tag}.taae"
            (folder / entry["taae_file"]).write_bytes(version.data)
            paths.append(str(folder / entry["taae_file"]))
    return report, paths


def _loudness(wav: Any, sample_rate_hz: int) -> float | None:
    """BS.1770, LUFS; None for what is silent or too short to have one."""
    try:
        loudness_lufs = audio.integrated_loudness(wav, sample_rate_hz)
    except ValueError:
        return None
    return loudness_lufs if math.isfinite(loudness_lufs) else None


def share_template() -> str:
    """A page that works offline, with a place for the report and the sounds of a comparison."""
    template = (STATIC_DIR / "shared.html").read_text(encoding="utf-8")
    style = (STATIC_DIR / "page.css").read_text(encoding="utf-8")
    return template.replace("PAGE_CSS", style).replace("PAGE_SCRIPTS", _scripts(*PLAYER_SCRIPTS))


def _choices(codec: "Codec") -> list[tuple[str, str]]:
    """The bitrate in a listener's words, the bottleneck beneath."""
    beneath = {"continuous": "not quantised"}
    return [(f"{bitrate_label(spec, codec.frame_rate_hz)}\n{beneath.get(spec, spec)}", spec) for spec in BOTTLENECKS]


def _header(codec: "Codec") -> str:
    millions = sum(parameter.numel() for parameter in codec.model.parameters()) / 1e6
    what = "the small embedded one, still rough" if codec.name == "mini" else f"“{escape(codec.name)}”"
    return f"""<header class="taae masthead"><h1>Hear speech at a few hundred bits per second</h1>
<p>The model is {what}: {millions:.3g} million parameters, against 950 million in the paper.
It runs on this machine, and every number on this page is measured on what you hear.</p>
<p><a href="live/">Speak live through the codec</a> · <a href="admin">Listening tests</a></p></header>"""


def _scripts(*names: str) -> str:
    """Files of this page, or of the listening engine that it shares."""
    folders = (ENGINE_DIR, STATIC_DIR)
    paths = (next(folder / name for folder in folders if (folder / name).exists()) for name in names)
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)
