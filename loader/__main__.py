"""`python -P -m loader serve|convert`: the loader's command lines, as its parent starts them.

Imports only what the subcommand needs: a service never pays for torch.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from protocol.units import parse_rate

#: A reader thread that has its bytes should not wait long for the loop to let go of the interpreter.
_SWITCH_S = 0.0005


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["convert"]:
        from loader.convert import main as convert

        return convert(arguments[1:])
    return _serve(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loader", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="serve|convert")
    commands.add_parser("convert", help="checkpoint to store", add_help=False)
    serve = commands.add_parser("serve", help="serve the experts of a store from an arena")
    serve.add_argument("--store", type=Path, required=True, help="folder of the store")
    serve.add_argument("--arena-fd", type=int, required=True, help="inherited memfd of the arena")
    serve.add_argument("--folder", type=Path, required=True, help="private folder for the sockets")
    serve.add_argument("--threads", type=int, default=2, help="reader threads")
    serve.add_argument("--rate", type=_rate, help="state a slow disk, as in 40MB/s")
    serve.add_argument("--direct-io", default="auto", help="auto, on or off: read past the page cache")
    serve.add_argument("--no-verify", action="store_true", help="trust the disk: skip the checksums")
    serve.add_argument("--faults", type=Path, help=argparse.SUPPRESS)
    serve.add_argument("--timeline", type=Path, help="write a list of trace events here at the end")
    serve.add_argument("--ready-fd", type=int, help="pipe for the one line that says ready or why not")
    serve.add_argument("--lifeline-fd", type=int, help="pipe that ends when the parent dies")
    return parser


def _rate(text: str) -> int:
    try:
        return parse_rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _serve(arguments: argparse.Namespace) -> int:
    from loader.options import ServeOptions
    from loader.service import serve
    from protocol.child import report_error, report_ready
    from protocol.errors import SidestageError

    sys.setswitchinterval(_SWITCH_S)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    ready_fd: int | None = arguments.ready_fd

    def on_ready(facts: dict[str, object]) -> None:
        nonlocal ready_fd
        if ready_fd is not None:
            report_ready(ready_fd, facts)
            ready_fd = None

    try:
        options = ServeOptions(
            store=arguments.store,
            arena_fd=arguments.arena_fd,
            folder=arguments.folder,
            threads=arguments.threads,
            rate=arguments.rate,
            direct_io=arguments.direct_io,
            verify=not arguments.no_verify,
            timeline=arguments.timeline,
            faults=arguments.faults,
            lifeline_fd=arguments.lifeline_fd,
        )
        serve(options, on_ready=on_ready)
    except (SidestageError, ValueError, OSError) as error:
        logging.getLogger("sidestage.loader").error("%s", error)
        if ready_fd is not None:
            report_error(ready_fd, str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
