"""The socket that a page is served on, and its address."""

import os
import socket

from genie_fn.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address."""
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    if os.name == "posix":  # elsewhere it would let two programs use a port
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be used ({error.strerror}): choose another --cfg.port"
        ) from error
    return listening


def own_address(host: str, port: int) -> str:
    """The address of the page; for all networks (0.0.0.0 or ::) by this machine's name."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    if ":" in host:
        host = f"[{host}]"
    return f"http://{host}:{port}"
