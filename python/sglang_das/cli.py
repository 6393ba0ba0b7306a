"""The `das` command. A subcommand's module is imported only when it is the one asked for."""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

# Name -> (module, extras it needs, what it does). A module has `add_arguments(parser)` and `run(args) -> status`.
COMMANDS = {
    "demo": (
        "sglang_das.demo.run",
        "sglang,demo",
        "compare rollouts of a real model without and with DAS, on this machine",
    ),
    "doctor": (
        "sglang_das.engine.doctor",
        "sglang",
        "check that this installation can serve with DAS, or that a server's outputs are the same without",
    ),
    "replay": (
        "sglang_das.replay.run",
        "replay",
        "replay recorded rollouts against drafters: what each accepts, promises and costs",
    ),
    "profile": (
        "sglang_das.profile",
        "sglang",
        "measure what a server's verify steps cost, over batch sizes and widths",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="das", description="Distribution-aware speculative decoding for SGLang rollouts."
    )
    parser.add_argument("--version", action="version", version=f"sglang-das {importlib.metadata.version('sglang-das')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, extras, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        if words[:1] == [name]:
            try:
                implementation = importlib.import_module(module)
            except ModuleNotFoundError as error:
                parser.exit(2, f"das {name} needs {error.name}. Run: pip install 'sglang-das[{extras}]'\n")
            command.description = implementation.__doc__
            implementation.add_arguments(command)
            command.set_defaults(run=implementation.run)
    args = parser.parse_args(words)
    status: int = args.run(args)
    return status


if __name__ == "__main__":
    sys.exit(main())
