"""hybrid machine: guests and boxes that run containers."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from hybrid.cli import format
from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_machine, engine
from hybrid.cli.containers import Format, Quiet, emit, show_objects
from hybrid.cli.conversation import converse, exec_body, parse_keys, usable_terminal
from hybrid.cli.flags import size
from hybrid.cli.lifecycle import each
from hybrid.cli.main import fail
from hybrid.cli.progress import progress
from hybrid.cli.session import DEFAULT_DETACH_KEYS, write
from hybrid.errors import InvalidInput

app = new(help="Machines: guests and boxes that run containers.")

Name = Annotated[str, typer.Argument(metavar="MACHINE", autocompletion=complete_machine)]
Names = Annotated[list[str], typer.Argument(metavar="MACHINE...", autocompletion=complete_machine)]


@verb(app, "create", "hybrid machine create build --profile large --memory 1g --cpus 2")
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MACHINE")],
    profile: Annotated[str, typer.Option("--profile", help="Machine shape.")] = "default",
    memory: Annotated[str, typer.Option("--memory", "-m", help="Such as 512m.")] = "",
    cpus: Annotated[int, typer.Option("--cpus", help="Number of CPUs.")] = 0,
) -> None:
    """Create and boot a guest; containers go there with --isolation machine:NAME."""
    body: dict[str, Any] = {"Name": name, "Provider": "libvirt", "Profile": profile}
    if memory:
        body["Memory"] = size(memory, "--memory")
    if cpus:
        body["Cpus"] = cpus
    with progress(f"booting {name}"):
        answer = engine(ctx).create_machine(body)
    print(answer.get("Name", name))


@verb(
    app,
    "add",
    "hybrid machine add edge ssh://root@192.0.2.7",
    "hybrid machine add edge ssh://root@192.0.2.7:2222 --identity ~/.ssh/id_ed25519",
    "hybrid machine add edge ssh://root@192.0.2.7 --fingerprint SHA256:w9Qk…",
    "hybrid run --rm --isolation machine:edge --network host busybox ip address",
)
def add(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="MACHINE")],
    address: Annotated[str, typer.Argument(metavar="ssh://[USER@]HOST[:PORT]")],
    identity: Annotated[str, typer.Option("--identity", "-i", help="Private key file.")] = "",
    known_hosts: Annotated[
        str, typer.Option("--known-hosts", help="Instead of ~/.ssh/known_hosts.")
    ] = "",
    accept_host_key: Annotated[
        bool, typer.Option("--accept-host-key", help="Trust an unknown host key from now on.")
    ] = False,
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="Trust the host key SHA256:… from now on.")
    ] = "",
) -> None:
    """Add a box that is reached over SSH: python3 and crun are all it needs.

    The daemon connects, with its user's keys, ssh-agent and ~/.ssh/config. Containers go there
    with --isolation machine:NAME. They are contained by that box's kernel: one boundary. They have
    no network but loopback unless --network host gives them the box's own; volumes, bind mounts
    and published ports are this host's and are refused there.
    """
    if not address.startswith("ssh://"):
        raise InvalidInput(f"invalid address {address!r}: expected ssh://[user@]host[:port]")
    body: dict[str, Any] = {"Name": name, "Provider": "ssh", "Address": address}
    if identity:
        body["Identity"] = os.path.abspath(os.path.expanduser(identity))
    if known_hosts:
        body["KnownHosts"] = os.path.abspath(os.path.expanduser(known_hosts))
    if accept_host_key:
        body["AcceptHostKey"] = True
    if fingerprint:
        body["Fingerprint"] = fingerprint
    with progress(f"connecting to {address}"):
        answer = engine(ctx).create_machine(body)
    print(answer.get("Name", name))


@verb(app, "ls", "hybrid machine ls", "hybrid machine ls --all", "hybrid machine ls --format json")
def ls(
    ctx: typer.Context,
    all_: Annotated[
        bool, typer.Option("--all", "-a", help="Also guests that stand ready and are nobody's yet.")
    ] = False,
    quiet: Quiet = False,
    format_: Format = None,
) -> None:
    """List machines."""
    machines = engine(ctx).machines(all=all_)
    rows = [
        (
            str(machine.get("Name") or f"({machine['Id'][:12]})"),
            str(machine.get("Provider", "")),
            str(machine.get("Status", "")),
            str(machine.get("Kernel", "")),
            str(machine.get("Cpus") or "-"),
            format.size(machine["Memory"]) if machine.get("Memory") else "-",
            str(len(machine.get("Containers") or ())),
        )
        for machine in machines
    ]
    headings = ("NAME", "PROVIDER", "STATUS", "KERNEL", "CPUS", "MEMORY", "CONTAINERS")
    emit(format.listing(format_, quiet, headings, rows, machines, [row[0] for row in rows]))


@verb(app, "inspect", "hybrid machine inspect build")
def inspect(ctx: typer.Context, names: Names) -> int:
    """Show everything that is known about machines."""
    return show_objects(names, engine(ctx).machine)


@verb(app, "start", "hybrid machine start build")
def start(ctx: typer.Context, names: Names) -> int:
    """Boot or connect machines."""
    return each(names, "starting", engine(ctx).start_machine)


@verb(app, "stop", "hybrid machine stop build")
def stop(ctx: typer.Context, names: Names) -> int:
    """Stop machines and the containers on them."""
    return each(names, "stopping", engine(ctx).stop_machine)


@verb(app, "rm", "hybrid machine rm build")
def rm(
    ctx: typer.Context,
    names: Names,
    force: Annotated[bool, typer.Option("--force", "-f", help="Used ones too.")] = False,
) -> int:
    """Remove machines; hybrid's agent and files are taken off a box reached over SSH.

    A box that cannot be reached is only forgotten with --force.
    """
    client = engine(ctx)
    return each(names, "removing", lambda name: client.remove_machine(name, force=force))


@verb(app, "console", "hybrid machine console build")
def console(
    ctx: typer.Context,
    name: Name,
) -> None:
    """Show the last of what a guest wrote on its console: its kernel's warnings, and why it ended."""
    # A guest's bytes: on a terminal they are made harmless, into a pipe they go as they are.
    visible = sys.stdout.isatty()
    silent = True
    for block in engine(ctx).console(name).blocks():
        silent = False
        write(1, _visible(block) if visible else block)
    if silent:
        hint = f"the kernel's own log: hybrid machine shell {name} dmesg"
        print(
            f"{name} has written nothing on its console: guests boot quietly; {hint}",
            file=sys.stderr,
        )


def _visible(block: bytes) -> bytes:
    text = block.decode(errors="replace").replace("\r", "")
    return "".join(c if c in "\n\t" else format.printable(c) for c in text).encode()


@verb(
    app,
    "shell",
    "hybrid machine shell build",
    "hybrid machine shell build uname -r",
    passthrough=True,
)
def shell(
    ctx: typer.Context,
    name: Name,
    command: Annotated[list[str] | None, typer.Argument(metavar="COMMAND")] = None,
) -> int:
    """Run a shell, or a command, in a machine itself, outside its containers."""
    tty = sys.stdin.isatty() and sys.stdout.isatty()
    if not usable_terminal(True, tty):
        return fail("the input device is not a TTY")
    body = exec_body(command or ["sh"], interactive=True, tty=tty, detach_keys=DEFAULT_DETACH_KEYS)
    client = engine(ctx)
    exec_id = client.create_machine_exec(name, body)
    return converse(client, exec_id, body, parse_keys(DEFAULT_DETACH_KEYS))
