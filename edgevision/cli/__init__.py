"""The command line: each verb is a thin file over a function of the library.

Standard output carries results (one JSON document with ``--json``), standard error carries progress and errors.
Exit codes: 0 done, 1 something the user can mend, 2 wrong usage, 3 a check did not hold, 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# verb → what its help says; the verb's module is imported only when it is used
VERBS: dict[str, str] = {
    "models": "list the model zoo",
    "priors": "find priors (anchor sizes) for a detector from the boxes of a data set",
    "train": "train a model of the zoo; the run folder is a Checkpoint",
    "distill": "train a smaller or pruned model on a trained one's answers",
    "prune": "remove channels from a trained model and train it again, or show what removing them would do",
    "quantize": "train a model for INT8, or look into what INT8 will do to its RepVGG blocks",
    "convert": "convert a model to bundles for ONNX Runtime, OpenVINO, ncnn and TensorRT",
    "sensitivity": "rank the layers of a model by what quantizing them does to its outputs",
    "verify": "prove that a bundle answers as its FP32 model does",
    "predict": "run a bundle on pictures, videos or a camera",
    "eval": "measure a bundle's accuracy and its agreement with a reference",
    "bench": "measure latency, memory and accuracy of bundles side by side",
    "report": "make a page of bench results",
    "devices": "show the device registry, or estimate a bundle's latency on boards one does not have",
    "doctor": "tell what this machine has and whether INT8 will help on it",
    "run": "run a recipe: train, prune, distill, quantize, convert and report as one chain that resumes",
}


_INTERRUPTED = "nothing is half-written; the same command goes on where it stopped"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    label = f"edgevision {verb}" if verb else "edgevision"
    try:
        return _run(arguments, verb, label)
    except KeyboardInterrupt as error:
        print(f"\n{label}: interrupted: {str(error) or _INTERRUPTED}", file=sys.stderr)
        return 130
    except ImportError as error:
        from edgevision.dependencies import is_interrupt

        if not is_interrupt(error):
            raise
        print(f"\n{label}: interrupted: {_INTERRUPTED}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has gone (``| head``): nobody is left to tell
        _discard_output()
        return 1
    except OSError as error:
        # the machine's doing: standard output on a full disk, a file without permission
        print(f"{label}: {error}", file=sys.stderr)
        _discard_output()
        return 1


def _run(arguments: list[str], verb: str | None, label: str) -> int:
    parser = _parser(verb)
    options = parser.parse_args(arguments)
    if options.verb is None:
        parser.print_help()
        return 2
    from edgevision import progress
    from edgevision.errors import EdgeVisionError

    progress.set_enabled(not options.quiet)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
    except EdgeVisionError as error:
        print(f"{label}: {error}", file=sys.stderr)
        return error.exit_code
    return code


def _discard_output() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's own flush at exit does not fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is no file
        return


def _parser(verb: str | None) -> argparse.ArgumentParser:
    """The parser; only the chosen verb's options are filled in."""
    parser = _Parser(
        prog="edgevision",
        description="Train, quantize, convert and run light vision networks on edge devices.",
        epilog="Every verb takes --json and --help.",
    )
    parser.add_argument("--version", action=_Version)
    parser.set_defaults(verb=None, quiet=False)
    verbs = parser.add_subparsers(metavar="VERB", parser_class=argparse.ArgumentParser)
    for name, help_text in VERBS.items():
        sub = verbs.add_parser(name, help=help_text, description=help_text[0].upper() + help_text[1:] + ".")
        if name == verb:
            module = importlib.import_module(f"edgevision.cli.{name}")
            module.add_arguments(sub)
            sub.add_argument("--json", action="store_true", help="print one JSON document on standard output")
            sub.add_argument("--quiet", action="store_true", help="no progress on standard error")
            sub.set_defaults(verb=name, run=module.run)
    return parser


class _Parser(argparse.ArgumentParser):
    """Answers an unknown verb with the near ones."""

    def error(self, message: str) -> NoReturn:
        if "invalid choice" in message:
            from edgevision.registry import unknown_name

            given = message.split("'")[1]
            message = unknown_name("verb", given, VERBS)
        super().error(message)


class _Version(argparse.Action):
    """Prints the version; a class so that it is looked up only when asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> NoReturn:
        from edgevision import __version__

        print(__version__)
        parser.exit()
