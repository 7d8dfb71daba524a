"""Serves the page with a tiny codec of random weights: `python tiny_server.py PORT FOLDER`, ratings in FOLDER.

Every host other than this machine that the process wants to reach is printed and refused.
"""

import contextlib
import dataclasses
import socket
import sys

import torch

from taae.codec import Codec
from taae.config import load_preset
from taae.model import TAAE
from workbench.ui.page import serve

CONTROL = "control.invalid"


def tiny_codec() -> Codec:
    """Files, tokens and timing are real, the sound is not speech."""
    torch.manual_seed(0)
    config = dataclasses.replace(load_preset("mini"), name="tiny", width=64, depths=(1, 1, 1))
    return Codec(TAAE(config), b"tinytiny")


def stay_at_home(event: str, arguments: tuple) -> None:
    """An audit hook."""
    host = None
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    if host not in (None, "127.0.0.1", "::1", "localhost", "0.0.0.0", ""):
        print(f"OUTSIDE {host}", flush=True)
        raise OSError(f"{host} is not this machine")


if __name__ == "__main__":
    sys.addaudithook(stay_at_home)
    with contextlib.suppress(OSError):  # shows that the hook works
        socket.getaddrinfo(CONTROL, 80)
    torch.set_num_threads(1)
    serve(tiny_codec(), port=int(sys.argv[1]), listening=sys.argv[2])
