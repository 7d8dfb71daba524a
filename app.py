"""Serve the page and the listening tests: `python app.py`, then open the addresses that it prints."""

import argparse
import sys
from pathlib import Path

import taae


def main() -> None:
    """Reads the options, loads the model once, and serves until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for the local network")
    parser.add_argument("--port", type=int, default=7860)
    parser.add_argument("--share", action="store_true", help="open a public tunnel through Gradio's servers")
    parser.add_argument("--model", default="mini", help="embedded model or model folder")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--listening", type=Path, default=Path("runs/listening"), help="folder of the listening tests")
    options = parser.parse_args()
    try:
        codec = taae.load(options.model, device=options.device)

        from workbench.ui.page import serve  # needs the extra `app`, and a wrong model is told sooner

        serve(codec, host=options.host, port=options.port, share=options.share, listening=options.listening)
    except ImportError as error:
        sys.exit(f"app.py: {error}; the page needs more packages: pip install 'taae-workbench[app]', or run make app")
    except (OSError, OverflowError, ValueError) as error:  # no such model, port taken, no such port
        sys.exit(f"app.py: {error}")


if __name__ == "__main__":
    main()
