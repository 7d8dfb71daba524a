"""What the command line prints: results on stdout, complaints on stderr, an error in one line."""

import sys


def say(text: str) -> None:
    """Print a result at once, around a progress bar."""
    from tqdm import tqdm

    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print what went wrong, around a progress bar."""
    from tqdm import tqdm

    tqdm.write(f"taae: {text}", file=sys.stderr)


def explain(error: BaseException) -> str:
    """An error in one line; one that no user can have caused says its type."""
    if isinstance(error, MemoryError):
        return "out of memory"
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror + (f": {error.filename}" if error.filename is not None else "")
    if not isinstance(error, ValueError | OSError | RuntimeError | ImportError):
        text = f"unexpected {type(error).__name__}: {text}; taae --debug shows where"
    return " ".join(text.split()) or type(error).__name__
