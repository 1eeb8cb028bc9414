"""The kernel settings that networks need, written below /proc/sys/net."""

from __future__ import annotations

from pathlib import Path

from hybrid.errors import Internal

_NET = Path("/proc/sys/net")


def read(name: str) -> str:
    """The value of ``ipv4/ip_forward`` and the like; "" where the kernel has no such setting."""
    try:
        return (_NET / name).read_text().strip()
    except OSError:
        return ""


def write(name: str, value: str) -> None:
    """Sets it, unless it already has that value."""
    if read(name) == value:
        return
    try:
        (_NET / name).write_text(value)
    except OSError as error:
        raise Internal(
            f"setting net/{name} to {value}: {error.strerror} (is /proc/sys writable?)"
        ) from error


def prepare_bridge(device: str) -> None:
    """No IPv6; 127.0.0.1 may be published (the ruleset keeps the wire out of 127/8).

    No redirects for hairpins.
    """
    if read(f"ipv6/conf/{device}/disable_ipv6"):
        write(f"ipv6/conf/{device}/disable_ipv6", "1")
    write(f"ipv4/conf/{device}/route_localnet", "1")
    write(f"ipv4/conf/{device}/send_redirects", "0")
    write(f"ipv4/conf/{device}/accept_redirects", "0")


def prepare_port(device: str) -> None:
    """A bridge port of the host has no addresses at all."""
    if read(f"ipv6/conf/{device}/disable_ipv6"):
        write(f"ipv6/conf/{device}/disable_ipv6", "1")


def enable_forwarding() -> None:
    """The host routes for its guests."""
    write("ipv4/ip_forward", "1")


def bridge_is_filtered() -> bool:
    """Bridged frames go through the IP hooks, and are translated there (module br_netfilter)."""
    return read("bridge/bridge-nf-call-iptables") == "1"
