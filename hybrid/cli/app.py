"""The command table. A command's module is imported when the command is used, or all are for
``--help``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup
from typer.main import get_group

Function = TypeVar("Function", bound=Callable[..., Any])

# Verb -> module with a Typer app that has it, in the order in which --help shows them.
VERBS = {
    "run": "run",
    "create": "run",
    "ps": "containers",
    "logs": "logs",
    "exec": "execute",
    "attach": "execute",
    "start": "lifecycle",
    "stop": "lifecycle",
    "restart": "lifecycle",
    "kill": "lifecycle",
    "rm": "lifecycle",
    "wait": "lifecycle",
    "inspect": "containers",
    "up": "stack",
    "down": "stack",
    "verify": "verify",
    "info": "system",
    "version": "system",
}
# Noun -> module whose whole app is the group.
NOUNS = ("image", "machine", "network", "volume", "guest", "template")
DAEMON = "daemon"
ORDER = (*VERBS, *NOUNS, DAEMON)


@dataclass(frozen=True)
class Settings:
    """The options before the command."""

    host: str | None = None
    root: Path | None = None


class Commands(TyperGroup):
    """A group that imports a command's module only when that command is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(ORDER)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name in VERBS:
            return self.load(VERBS[cmd_name]).commands[cmd_name]
        if cmd_name in NOUNS:
            return self.load(cmd_name)
        if cmd_name == DAEMON:
            return self.load(DAEMON).commands[DAEMON]
        return None

    @staticmethod
    def load(module: str) -> TyperGroup:
        return get_group(import_module(f"hybrid.cli.{module}").app)


def new(*, add_completion: bool = False, **settings: Any) -> typer.Typer:
    """A Typer app in house style: plain help as docker prints it, errors left to ``main``."""
    return typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        add_completion=add_completion,
        **settings,
    )


def verb(
    app: typer.Typer, name: str, *examples: str, passthrough: bool = False
) -> Callable[[Function], Function]:
    """Registers a command. ``passthrough``: what follows its first argument is not its options."""
    lines = ["\b", "Examples:", *(f"  {example}" for example in examples)]
    return app.command(
        name,
        epilog="\n".join(lines),
        context_settings={"allow_interspersed_args": not passthrough},
    )


def command() -> Any:
    """The whole command, ready to be called with arguments."""
    app = new(cls=Commands, invoke_without_command=True, epilog=_EPILOG, add_completion=True)
    app.callback()(_root)
    return typer.main.get_command(app)


_EPILOG = """\b
Examples:
  hybrid run --rm -it busybox sh          a shell behind both walls
  hybrid up -f examples/stack/compose.yaml
  hybrid verify --all                     what was promised, and what is so

Commands are passed to the daemon; as root the first one starts it.
Environment: HYBRID_HOST, HYBRID_ROOT, DOCKER_HOST."""


def _version(value: bool) -> None:
    if value:
        from hybrid.cli.version import line

        print(line())
        raise typer.Exit


def _root(
    ctx: typer.Context,
    host: Annotated[
        str | None,
        typer.Option("--host", "-H", help="Daemon to talk to: unix:///path or tcp://host:port."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option("--root", readable=False, help="Its state directory, to find it by."),
    ] = None,
    version: Annotated[
        bool,
        typer.Option("--version", "-v", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run containers behind two walls: a virtual machine, and a container inside it."""
    ctx.obj = Settings(host, root)
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit
