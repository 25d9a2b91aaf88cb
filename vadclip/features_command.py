"""The command ``vadclip features``: its arguments, and what it does with them."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vadclip.features import CROPS, count_snippets, holds_ten_crops
from vadclip.frames import footage_name, named_footage
from vadclip.groundtruth import video_name
from vadclip.moved import places
from vadclip.tables import read_table, required
from vadrun.console import DAMAGED, ProgressLine
from vadrun.errors import UserError
from vadrun.files import json_text

Files = list[tuple[Path, int | None, int | None]]
"""Path, crop within the file, and number of the crop, of each feature file of a video."""

_CROP = re.compile(r"__(\d)$")
_LOOKED_AT = 1000  # videos whose lengths are looked at to choose short ones

CHECK = """Find out how features were made: compare them with extraction from a few of their videos, with every frame of
a snippet, every crop and every preprocessing. The exit code is 1 where nothing reproduces them."""


def add_arguments(p: argparse.ArgumentParser) -> None:
    """Give a parser the arguments of ``vadclip features``."""
    commands = p.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    c = commands.add_parser("check", help="which settings reproduce features that you have", description=CHECK)
    c.add_argument(
        "--list",
        required=True,
        type=Path,
        metavar="CSV",
        help="the feature files (a column path), or a folder of them; [n,d], or [n,10,d] with all crops",
    )
    c.add_argument("--videos", required=True, type=Path, metavar="DIR", help="their videos, by the same names")
    c.add_argument(
        "--encoder", required=True, metavar="WHAT", help="the CLIP that should have made them, as for vadclip extract"
    )
    c.add_argument("--clip-model", metavar="NAME", help="which CLIP a file of weights is, as for vadclip extract")
    c.add_argument("--root", type=Path, metavar="DIR", help="where the feature files of the list lie now")
    c.add_argument("--rate", type=float, metavar="FPS", help="the videos are folders of frames, so many a second")
    c.add_argument("--most", type=int, default=2, metavar="N", help="videos to compare, short ones (default 2)")
    c.add_argument(
        "--snippets", type=int, default=4, metavar="N", help="snippets of each, where most changes (default 4)"
    )
    c.add_argument("--batch", type=int, default=8, metavar="N", help="frames per encoder call (default 8)")
    c.add_argument("--backend", default="auto", metavar="NAME", help="of a bundle; see vadrun --help")
    c.add_argument("--precision", default="auto", metavar="P", help="of a bundle; see vadrun --help")
    c.add_argument("--json", action="store_true", help="print the findings as JSON")
    c.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Do what the arguments of :func:`add_arguments` say; returns the exit code.

    Raises:
        UserError: an input cannot be used.
    """
    from vadclip.extract import open_encoder
    from vadclip.features_check import check, read_given

    for name in ("most", "snippets", "batch"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}: use a whole number of at least 1")
    files = listed_features(arguments.list, arguments.root)
    videos = _videos(arguments.videos, arguments.rate)
    chosen = choose(files, videos, arguments.most, arguments.snippets, arguments.videos)
    given = [read_given(name, videos[name], files[name]) for name in chosen]
    encoder = open_encoder(
        arguments.encoder,
        batch=arguments.batch,
        backend=arguments.backend,
        precision=arguments.precision,
        clip_model=arguments.clip_model,
    )
    bar = ProgressLine("features check", not arguments.quiet)
    findings = check(
        given,
        encoder,
        snippets=arguments.snippets,
        rate=arguments.rate,
        progress=lambda done, total: bar.count(done, total, "snippets"),
    )
    bar.clear()
    if arguments.json:
        print(json_text({"encoder": encoder.name, **findings.to_json()}))
    else:
        print(f"{', '.join(chosen)}; encoder {encoder.name}\n")
        print(findings.text())
    return 0 if findings.reproduced else DAMAGED


def listed_features(source: Path, root: Path | None) -> dict[str, Files]:
    """The feature files of each video, from a list or a folder.

    Raises:
        UserError: it cannot be read, names no feature file, or none that is there.
    """
    if source.is_dir():
        paths: Sequence[Path] = sorted(source.rglob("*.npy"))
        if not paths:
            raise UserError(f"{source} holds no .npy files: name a list of feature files, or a folder that holds them")
    else:
        rows = read_table(source, ("path",))
        texts = [required(source, line, row, "path") for line, row in rows]
        if not texts:
            raise UserError(f"{source} lists no feature file: add rows below the header")
        if other := next((text for text in texts if Path(text).suffix.lower() != ".npy"), None):
            raise UserError(f"{source} lists {other} where feature files (.npy) are wanted: name the features' list")
        paths = [path for path in places(source, texts, root) if path.is_file()]
        if not paths:
            raise UserError(f"none of the {len(texts)} files of {source} is there: name their folder with --root")
    found: dict[str, Files] = {}
    for path in dict.fromkeys(paths):
        match = _CROP.search(path.stem)
        # Files of ten crops are told later, of those videos only that are compared.
        found.setdefault(video_name(path.name), []).append((path, None, int(match[1]) if match else None))
    return found


def choose(files: dict[str, Files], videos: Mapping[str, Path], most: int, snippets: int, folder: Path) -> list[str]:
    """The names of the videos that are compared: the shortest ones that have enough snippets.

    The entries of ``files`` of these become a row for each crop.

    Raises:
        UserError: no feature file has a video.
    """
    both = [name for name in files if name in videos]
    if not both:
        raise UserError(
            f"{folder} has no video of any of the {len(files)} features: {next(iter(files))!r} is such a name, and"
            f" {next(iter(videos))!r} is one of a video; name the folder of their videos"
        )
    lengths: dict[str, int] = {}
    for name in both[:: max(len(both) // _LOOKED_AT, 1)]:
        path, _, number = files[name][0]
        ten = number is None and holds_ten_crops(path)
        if ten:
            files[name] = [(path, crop, crop) for crop in range(CROPS)]
        lengths[name] = count_snippets(path, None, 0 if ten else None)
    ordered = sorted(lengths, key=lambda name: (lengths[name] < snippets, lengths[name], name))
    crops = {number for *_, number in files[ordered[0]]}
    return [name for name in ordered if {number for *_, number in files[name]} == crops][:most]


def _videos(folder: Path, rate: float | None) -> dict[str, Path]:
    """The videos below a folder, by name."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the one that holds the videos of the features")
    found: dict[str, Path] = {}
    for path in named_footage([folder], rate):
        name = footage_name(path)
        if name in found:
            print(f"vadclip: {name!r} is the name of {found[name]} and of {path}; the first is taken", file=sys.stderr)
        found.setdefault(name, path)
    return found
