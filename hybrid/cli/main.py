"""Entry point: exit codes and error lines. Importing this module imports nothing heavy."""

from __future__ import annotations

import os
import sys

USAGE = 125  # what docker's command exits with when it does not understand its own flags


def run() -> int:
    """Runs the command line of this process; its exit code."""
    arguments = sys.argv[1:]
    if arguments in (["--version"], ["-v"]):
        # Needs no command table: half of what asks for it is a script that probes.
        from hybrid.cli.version import line

        print(line())
        return 0
    try:
        if "exec" in arguments:
            from hybrid.cli import express

            if (code := express.execute(arguments)) is not None:
                return express.leave(code)
        return _dispatch(arguments)
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of ours. Python would
        # complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _dispatch(arguments: list[str]) -> int:
    import typer

    from hybrid.cli.app import command
    from hybrid.errors import HybridError

    try:
        result = command()(arguments, prog_name="hybrid", standalone_mode=False)
    except typer.TyperException as error:
        return _usage_error(error)
    except HybridError as error:
        return fail(error.message)
    except BrokenPipeError:
        raise
    except PermissionError as error:
        return fail(f"no permission on {error.filename}: use sudo")
    except OSError as error:
        return fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except typer.Abort:
        return fail("aborted")
    except KeyboardInterrupt:
        return 130
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _usage_error(error: Exception) -> int:
    context = getattr(error, "ctx", None)
    hint = f" (see '{context.command_path} --help')" if context else ""
    message = str(getattr(error, "format_message", error.__str__)()).rstrip(".")
    return fail(f"{message}{hint}", USAGE)


def fail(message: str, code: int = 1) -> int:
    """Prints one error line; the exit code to leave with."""
    # Part of it may come from a guest or an image: it must not steer the terminal.
    lines = (
        "".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line)
        for line in message.rstrip().split("\n")
    )
    print("hybrid: " + "\n".join(lines), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(run())
