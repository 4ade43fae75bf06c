"""A command on a real terminal (a pty), and what a person then sees on it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable, Mapping, Sequence

PIECE = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|(\x1b.)")


def on_terminal(
    command: Sequence[str],
    columns: int = 100,
    environment: Mapping[str, str] | None = None,
    stdout: int | None = None,
    on_output: Callable[[subprocess.Popen[bytes], bytes], None] = lambda process, text: None,
) -> tuple[int, bytes]:
    """Exit code and all bytes that a command wrote to its terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs if stdout is None else stdout,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        except OSError:  # the last that held the terminal has closed it
            break
        said += piece
        on_output(process, said)
    os.close(ours)
    return process.wait(), said


def seen(said: bytes, columns: int = 100) -> list[str]:
    """The lines on the screen, with those that scrolled away; long ones are whole."""
    lines, row, column = [""], 0, 0
    for code, letter, control, text, _ in PIECE.findall(said.decode()):
        if control == "\r":
            column = 0
            continue
        if control == "\n":
            row += 1
            if row == len(lines):
                lines.append("")
        elif text:
            old = lines[row].ljust(column)
            lines[row] = old[:column] + text + old[column + len(text) :]
            column += len(text)
        elif letter == "A":
            row = max(row - int(code or 1), 0)
        elif letter == "K":
            lines[row] = "" if code == "2" else lines[row][:column]
    return [line.rstrip() for line in lines]
