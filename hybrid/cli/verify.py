"""hybrid verify: what was promised and what is so, as evidence from both sides of each wall."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from hybrid.cli import format
from hybrid.cli import tty as terminal
from hybrid.cli.app import new, verb
from hybrid.cli.connect import complete_running, engine
from hybrid.cli.containers import NoTrunc
from hybrid.cli.progress import progress
from hybrid.client.engine import Engine
from hybrid.errors import InvalidInput, NotFound

app = new()

PROJECT_LABEL, SERVICE_LABEL = "com.docker.compose.project", "com.docker.compose.service"


@verb(
    app,
    "verify",
    "hybrid verify db",
    "hybrid verify --all",
    "hybrid verify --all --format json | jq '.[] | select(.kept | not)'",
)
def verify(
    ctx: typer.Context,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SERVICE|CONTAINER]...", autocompletion=complete_running),
    ] = None,
    all: Annotated[bool, typer.Option("--all", "-a", help="Every running container.")] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="table, or json: one array.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only what is not kept.")] = False,
    no_trunc: NoTrunc = False,
) -> int:
    """Prove the isolation of containers; exit code 1 if a promise is not kept."""
    if format_ not in (None, "table", "json"):
        raise InvalidInput(f"unknown format {format_!r}: table or json")
    if bool(names) == all:
        raise InvalidInput("name services or containers, or use --all")
    client = engine(ctx)
    reports = []
    for container in _containers(client, names or []):
        with progress(f"verifying {container}"):
            reports.append(client.verify(container))
    if format_ == "json":
        print(json.dumps(reports, indent=2))
    else:
        width = 0 if no_trunc or not sys.stdout.isatty() else terminal.size()[1]
        print_reports(reports, quiet=quiet, width=width)
    return 0 if all_kept(reports) else 1


def all_kept(reports: Sequence[Mapping[str, Any]]) -> bool:
    """True when no report has a broken promise."""
    return all(report.get("kept") is True for report in reports)


def print_reports(
    reports: Sequence[Mapping[str, Any]], *, quiet: bool = False, width: int = 0
) -> None:
    """A table of checks for every container, then one line of judgement for each."""
    for report in reports:
        checks = [c for c in report.get("checks") or () if not (quiet and c.get("kept"))]
        if checks:
            print(f"{title(report)}:")
            rows = [
                (
                    str(check.get("boundary", "")),
                    str(check.get("name", "")),
                    verdict(check),
                    evidence_text(check.get("evidence")),
                )
                for check in checks
            ]
            print(format.table(("BOUNDARY", "CHECK", "RESULT", "EVIDENCE"), rows, width))
            print()
    for report in reports:
        results = [check.get("kept") is True for check in report.get("checks") or ()]
        broken = results.count(False)
        judged = f"{broken} of {len(results)} BROKEN" if broken else f"all {len(results)} kept"
        print(f"{title(report)}: {judged}")


def verdict(check: Mapping[str, Any]) -> str:
    """A check's result in a word; a guard that policy took away is not passed off as kept."""
    if not check.get("kept"):
        return "BROKEN"
    return "relaxed" if check.get("relaxed") else "kept"


def title(report: Mapping[str, Any]) -> str:
    """Name and isolation of the container that a report is about."""
    return f"{report.get('name') or report.get('container')} ({report.get('isolation')})"


def evidence_text(evidence: object) -> str:
    """Evidence in one cell: objects as name=value."""
    if isinstance(evidence, Mapping):
        return ", ".join(f"{name}={value}" for name, value in evidence.items())
    if isinstance(evidence, list):
        return ", ".join(str(item) for item in evidence)
    return "" if evidence is None else str(evidence)


def _containers(client: Engine, names: Sequence[str]) -> list[str]:
    """Ids of the containers that the names mean; all running ones for none."""
    running = client.containers()
    if not names:
        return [container["Id"] for container in running]
    result: list[str] = []
    for name in names:
        result += _of_service(running, name) or [str(client.container(name)["Id"])]
    return result


def _of_service(running: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    """Containers of the compose service ``name``; of this directory's project if several have
    one."""
    found = [c for c in running if (c.get("Labels") or {}).get(SERVICE_LABEL) == name]
    projects = {c["Labels"].get(PROJECT_LABEL) for c in found}
    if len(projects) > 1:
        here = os.environ.get("COMPOSE_PROJECT_NAME", os.path.basename(os.getcwd()).lower())
        if here not in projects:
            raise NotFound(
                f"service {name!r} is in several projects "
                f"({', '.join(sorted(map(str, projects)))}): name the container"
            )
        found = [c for c in found if c["Labels"].get(PROJECT_LABEL) == here]
    return [str(container["Id"]) for container in found]
