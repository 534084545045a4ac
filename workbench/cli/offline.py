"""`workbench --offline VERB`: no connection leaves this machine, whoever asks for one."""

from __future__ import annotations

import ipaddress
import os
import sys
from typing import Any

# what the hub's libraries ask before they try: they then look in the local cache alone
SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyname_ex")
CONNECTIONS = ("socket.connect", "socket.sendto")


def stay_offline() -> None:
    """Refuse, until the process ends, every connection and every look-up of a name, except those to the machine itself
    (Ray's, torchrun's).

    Python's audit hooks cannot be taken off again, and see what any Python library does. Must run before the hub's
    libraries are loaded, which read their switches once.
    """
    for name in SWITCHES:
        os.environ[name] = "1"
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if event in CONNECTIONS:
        address = arguments[1] if len(arguments) > 1 else None
        host = address[0] if isinstance(address, tuple) and address else None  # else a path on this machine
    elif event in LOOKUPS:
        host = arguments[0]
    else:
        return
    if isinstance(host, str | bytes) and host and not _is_here(host if isinstance(host, str) else host.decode()):
        raise OSError(f"offline: got a connection to {host}; expected a local file, or a run without --offline")


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"
