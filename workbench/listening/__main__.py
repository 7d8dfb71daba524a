"""Lets `python -m workbench.listening` run the command line."""

from workbench.listening.cli import main

main()
