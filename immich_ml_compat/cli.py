"""The command line, `immich-ml-compat`."""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from . import __version__
from .catalog import DEFAULT_CLIP, EMBEDDED_OCR, Task
from .logs import set_up_logging
from .settings import ConfigurationError, Settings, load_settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 used wrongly.

    `health` fails with 1 whatever is wrong: a container's health check may not end with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command == "patches":  # which has to do with no setting
            from .patches.command import run as run_patches

            return run_patches(options)
        settings = load_settings()
        set_up_logging(_log_level(settings.log_level, options.command), settings.log_format)
        # Each command loads what it needs: `--help` should not wait for an inference engine.
        if options.command == "serve":
            return _serve(settings, options)
        if options.command == "doctor":
            from .doctor import doctor

            return doctor(settings)
        if options.command == "health":
            from .health import health

            return health(settings)
        if options.command == "models":
            from .model_command import run

            return run(settings, options)
        from .predicting import predict

        return predict(settings, options)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return 1 if options.command == "health" else 2


def _serve(settings: Settings, options: argparse.Namespace) -> int:
    if not options.ray:
        from .serving import serve

        serve(settings)
        return 0
    if find_spec("ray") is None:
        raise ConfigurationError("serve --ray: the package ray is not installed; install immich-ml-compat[ray]")
    from .ray_serve import serve_on_ray

    serve_on_ray(settings)
    return 0


def _log_level(level: int, command: str) -> int:
    """What a server tells as it goes along would only stand in the way of a command's output."""
    return logging.WARNING if level == logging.INFO and command in ("predict", "doctor", "health") else level


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="immich-ml-compat", description="Immich's machine learning.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser(
        "serve", help="serve Immich's requests; settings come from the environment (see the README)"
    )
    serving.add_argument("--ray", action="store_true", help="with the workers of a Ray cluster, see docs/scale.md")
    commands.add_parser("doctor", help="try out what this machine and installation can do")
    commands.add_parser("health", help="ask the server that these settings start whether it is well; 1 where it is not")
    _add_models(commands.add_parser("models", help="manage the models in the cache folder"))
    _add_patches(
        commands.add_parser("patches", help="put this project's patches into Immich's own source, or take them out")
    )
    _add_predict(commands.add_parser("predict", help="run models on one photo or text and print the answer"))
    return parser


def _add_predict(parser: argparse.ArgumentParser) -> None:
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("image", nargs="?", type=Path, help="a photo")
    subject.add_argument("--text", help="a search query instead (needs --clip)")
    parser.add_argument("--ocr", nargs="?", const=EMBEDDED_OCR, metavar="MODEL", help=f"read text ({EMBEDDED_OCR})")
    parser.add_argument("--faces", nargs="?", const="buffalo_l", metavar="MODEL", help="find faces (buffalo_l)")
    clip = f"embed for smart search (MACHINE_LEARNING_CLIP_MODEL, or {DEFAULT_CLIP})"
    parser.add_argument("--clip", nargs="?", const="", metavar="MODEL", help=clip)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="how to print (table)")
    parser.add_argument("--draw", type=Path, metavar="OUT", help="write the photo with its text and faces marked")
    parser.add_argument("--font", type=Path, help="font file for --draw (one for Chinese is looked for)")


def _add_models(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="show the models on disk, and whether they are complete")
    listing.add_argument("--all", action="store_true", help="show those too that can be downloaded")
    downloading = actions.add_parser("download", help="download models, or what they lack")
    downloading.add_argument("names", nargs="+", metavar="NAME", help="a model's name")
    verifying = actions.add_parser("verify", help="compare files with the sums known of them; 1 where one differs")
    verifying.add_argument("names", nargs="*", metavar="NAME", help="a model's name (all models on disk)")
    removing = actions.add_parser("remove", help="delete what was downloaded; your own files stay")
    removing.add_argument("names", nargs="+", metavar="NAME", help="a model's name")
    removing.add_argument("--yes", action="store_true", help="do not ask")
    converting = actions.add_parser("convert", help="make a model from an official checkpoint of yours")
    converting.add_argument("family", choices=("cn-clip",), help="Chinese-CLIP")
    converting.add_argument("name", metavar="NAME", help="RN50, ViT-B-16, ViT-L-14, ViT-L-14-336 or ViT-H-14")
    converting.add_argument(
        "--from", dest="checkpoint", type=Path, required=True, metavar="FILE", help="such as clip_cn_vit-b-16.pt"
    )
    converting.add_argument("--fp16", action="store_true", help="in half precision: half the size")
    for action in (listing, downloading, verifying, removing):
        action.add_argument("--task", type=Task, choices=list(Task), help="only models of this task")


def _add_patches(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    listing = actions.add_parser("list", help="show the patches, and which of them are in a source tree")
    listing.add_argument("path", nargs="?", type=Path, metavar="PATH_TO_IMMICH", help="the folder with Immich's source")
    texts = {
        "check": "say which version a source tree is and which patches fit it; 1 where none do",
        "apply": "put patches, and what they need, into a source tree: all or none",
        "revert": "take patches, and what needs them, out again: the source is as it was",
    }
    for name, text in texts.items():
        action = actions.add_parser(name, help=text)
        action.add_argument("path", type=Path, metavar="PATH_TO_IMMICH", help="the folder with Immich's source")
        action.add_argument("names", nargs="*", metavar="NAME", help="`regenerate`, or `web/regenerate` (all)")
