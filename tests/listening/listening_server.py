"""Serves the listening tests without the playground: `python listening_server.py PORT FOLDER`."""

import os
import sys

import uvicorn

from workbench.listening.server import ADMIN_TOKEN_VARIABLE, build_server

if __name__ == "__main__":
    app = build_server(sys.argv[2], admin_token=os.environ[ADMIN_TOKEN_VARIABLE])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="info")
