"""Applies the rulesets, and says what of the host's own firewall stands in hybrid's way."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from hybrid.errors import Internal, Unsupported
from hybrid.network.nft import table_name

_TIMEOUT = 30.0


async def apply(ruleset: str) -> None:
    """One atomic transaction: all of the text takes effect, or nothing."""
    await _nft("-f", "-", text=ruleset)


async def warnings(instance: str) -> list[str]:
    """One line for each foreign chain whose policy drops what hybrid's own rules let through."""
    return obstacles(await _listed("chains"), instance)


def obstacles(listed: dict[str, Any], instance: str) -> list[str]:
    """``warnings`` of an ``nft -j list chains`` answer."""
    found = []
    effect = {
        "forward": "containers may not reach each other or the outside",
        "input": "containers may not resolve names, and published ports bypass it (they are forwarded)",
    }
    for item in listed.get("nftables", []):
        chain = item.get("chain", {})
        hook = chain.get("hook")
        if (
            hook in effect
            and chain.get("policy") == "drop"
            and chain.get("table") != table_name(instance)
        ):
            place = f"{chain.get('family')} {chain.get('table')} {chain.get('name')}"
            found.append(
                f"the host's firewall drops by default in '{place}': {effect[hook]};"
                f" accept devices 'hy{instance[:4]}*' there"
            )
    return found


async def foreign_ports(instance: str) -> dict[tuple[str, str, int], str]:
    """What other instances on this host publish: protocol, address, port; and the table that does it."""
    return published(await _listed("maps"), instance)


def published(listed: dict[str, Any], instance: str) -> dict[tuple[str, str, int], str]:
    """``foreign_ports`` of an ``nft -j list maps`` answer."""
    found = {}
    for item in listed.get("nftables", []):
        entry = item.get("map", {})
        table, name = entry.get("table", ""), entry.get("name", "")
        if not table.startswith("hybrid_") or table == table_name(instance):
            continue
        for key, _target in entry.get("elem", []):
            fields = key["concat"]
            if name == "published_everywhere":
                found[fields[0], "0.0.0.0", int(fields[1])] = table
            elif name == "published_at":
                found[fields[0], fields[1], int(fields[2])] = table
    return found


async def _listed(what: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(await _nft("-j", "list", what))
    except ValueError as error:
        raise Internal(f"nft -j list {what}: not JSON: {error}") from error
    return found


async def _nft(*arguments: str, text: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except FileNotFoundError as error:
        raise Unsupported("no 'nft' program on this host: install the package nftables") from error
    try:
        output, errors = await asyncio.wait_for(process.communicate(text.encode()), _TIMEOUT)
    except TimeoutError as error:
        process.kill()
        raise Internal(f"nft {' '.join(arguments)}: no answer in {_TIMEOUT:.0f} s") from error
    if process.returncode and process.returncode < 0:
        # nft reads all rules there are first, and 1.0.6 crashes on some that a newer one has written.
        raise Internal(
            f"nft {' '.join(arguments)} died of signal {-process.returncode}: does 'nft list ruleset'"
            " work? Rules that a newer nft wrote from a container in the host's network can break it"
        )
    if process.returncode:
        message = errors.decode(errors="replace").strip().splitlines()
        raise Internal(
            f"nft {' '.join(arguments)} failed: {message[0] if message else process.returncode}"
        )
    return output.decode()
