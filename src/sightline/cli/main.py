"""The ``sightline`` command: its sub-commands, and how their failures look.

Exit codes: 0 done; 1 something could not be done (one sentence on standard error); 2 wrong usage; 130 stopped by Ctrl-C, with
complete outputs of what was done so far unless the message says otherwise. ``SIGHTLINE_DEBUG=1`` shows tracebacks.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; the entry point of the installed ``sightline`` command."""
    try:
        import rich  # noqa: F401  typer is found without it in some versions, but our tables are not
        import typer  # noqa: F401
    except ImportError as error:
        print(f"sightline: the command line needs the package {error.name}: pip install 'sightline[video]'", file=sys.stderr)
        raise SystemExit(1) from None
    # Read when torch loads. OpenMP's own default lets threads spin at barriers, which costs tens of milliseconds each time another
    # program wants the core; waiting passively costs nothing that one could measure.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from sightline.cli.app import app

    app(prog_name="sightline")


if __name__ == "__main__":
    main()
