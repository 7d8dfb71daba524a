"""Writing a file so that its name never holds half of it."""

import os
import secrets
import shutil
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: str | os.PathLike[str], data: bytes | BinaryIO, *, force: bool) -> None:
    """Write bytes, or what a file object still holds, to `path`, all or nothing.

    They go into a temporary file in the same folder, which then takes the name.

    A link is followed. Devices and pipes are refused, since the rename would put a file in their place.

    Raises:
        FileExistsError: If `path` exists and `force` is false.
        OSError: If the folder is missing, `path` is no regular file, the disk is full, and so on.
    """
    target = Path(path).resolve()
    if target.exists():
        if not target.is_file():
            raise OSError(f"{path} is a folder or a device, not a file; choose another name")
        if not force:
            raise FileExistsError(f"{path} exists; choose another name, or use force (--force) to overwrite it")
    temporary = target.parent / f".{secrets.token_hex(8)}.tmp"
    # 0o666 less the umask, as for any new file; tempfile would make it private to its owner.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            if isinstance(data, bytes):
                file.write(data)
            else:
                shutil.copyfileobj(data, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut can leave the new name on an empty file
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
