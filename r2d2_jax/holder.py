"""What a lock says of the process that holds it."""

import os
import socket
import time


def this_process() -> str:
    """This process, in the words of a lock."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"


def is_gone(holder: str) -> bool:
    """Whether a lock names a process of this machine that has ended."""
    words = holder.split()
    if len(words) < 4 or not words[1].isdecimal() or words[3] != socket.gethostname():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return False
