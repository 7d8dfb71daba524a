"""Serves the app with a tiny causal codec of random weights: `python tiny_live_server.py PORT FOLDER`."""

import dataclasses
import sys

import torch

from taae.codec import Codec
from taae.config import load_preset
from taae.model import TAAE


def tiny_causal_codec() -> Codec:
    """Frames and timing are those of the embedded model, the sound is not speech."""
    torch.manual_seed(0)
    changes = {"name": "tiny-causal", "width": 64, "depths": (1, 1, 1), "window": (31, 0), "is_causal": True}
    return Codec(TAAE(dataclasses.replace(load_preset("mini"), layer_scale_init=0.5, **changes)), b"tinytiny")


if __name__ == "__main__":
    from workbench.ui.page import serve

    torch.set_num_threads(1)
    serve(tiny_causal_codec(), port=int(sys.argv[1]), listening=sys.argv[2])
