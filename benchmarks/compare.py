"""What do layerstore and every other program that is installed make of the same images? One run, one table.

    python -m benchmarks.compare [--corpus FOLDER] [--peers NAME,...] [--out FOLDER] [--rounds N]

For each program, in turns, with fresh stores, processes included:

    ingest      all images but one, then that one: seconds together, and bytes on disk afterwards, as `du` counts
    one more    what the last image added: bytes and seconds. By default one that was built again on a newer base
    root        until its root filesystem can be listed in a folder
    again       everything added once more, when all of it is there
    memory      the largest process; a daemon counts whole

OUT gets comparison.json, comparison.md and comparison.svg, with versions and commands. A program that cannot be
measured is named with the reason. The corpus is --corpus, else $LAYERSTORE_CORPUS, else a small synthetic one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.comparison_report import write_markdown, write_svg
from benchmarks.corpora import Corpus, extract_layers, open_corpus
from benchmarks.daemons import registry, unmount_below
from benchmarks.measure import Cost, commit, disk_bytes, machine, run, warm
from benchmarks.peers import LAYERSTORE, PEERS, PLAIN, TREES, Inputs, Peer, layout_tars

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from benchmarks.corpora import CorpusImage

__all__ = ["main"]

_PROJECT = Path(__file__).resolve().parent.parent


def main(arguments: Sequence[str]) -> int:
    """Run the comparison; returns the exit code, which is 1 when a program failed."""
    options = _parse(arguments)
    # A short name: podman takes no runroot of more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="cmp-", dir=options.work) as name:
        folder = Path(name)
        corpus = _corpus(options.corpus, folder)
        more = _one_more(corpus, options.more)
        first = [image for image in corpus.images if image is not more]
        reasons = {name: PEERS[name].absence() for name in options.peers}
        present = [PEERS[name] for name in options.peers if not reasons[name]]
        context = _context(corpus, more)
        with ExitStack() as stack:
            inputs = _inputs(stack, corpus, present, folder)
            results = list(_run_rounds(present, inputs, first, more, folder, options))
        context["machine"]["load_average_end"] = round(os.getloadavg()[0], 2)
    absent = [{"name": name, "reason": why} for name, why in reasons.items() if why]
    document = {"context": context, "results": results, "absent": absent}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "comparison.json").write_text(json.dumps(document, indent=1) + "\n")
    table = write_markdown(document)
    (options.out / "comparison.md").write_text(table)
    (options.out / "comparison.svg").write_text(write_svg(document))
    print(table)
    return 1 if any("failed" in result for result in results) else 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    default = os.environ.get("LAYERSTORE_CORPUS")
    parser.add_argument("--corpus", type=Path, default=Path(default) if default else None)
    parser.add_argument("--peers", default="all", help=f"all, or some of {','.join(PEERS)}")
    parser.add_argument("--more", metavar="IMAGE", help="which image comes last")
    parser.add_argument("--rounds", type=int, default=1, help="of each; slow ones run once (1)")
    parser.add_argument("--work", type=Path, help="where stores go; on the disk that is measured")
    parser.add_argument("--out", type=Path, default=Path("build/compare"), help="(build/compare)")
    options = parser.parse_args(arguments)
    chosen = list(PEERS) if options.peers == "all" else options.peers.split(",")
    if unknown := set(chosen) - set(PEERS):
        parser.error(f"no such peers: {', '.join(sorted(unknown))}")
    options.peers = [*LAYERSTORE, *(name for name in chosen if name not in LAYERSTORE)]
    return options


def _corpus(given: Path | None, folder: Path) -> Corpus:
    if given is not None:
        return open_corpus(given.resolve())
    source = folder / "synthetic"
    command = [sys.executable, "-m", "benchmarks.corpora", str(source)]
    subprocess.run(command, check=True, cwd=_PROJECT)
    return open_corpus(source)


def _one_more(corpus: Corpus, name: str | None) -> CorpusImage:
    """The image that comes last: the one that was asked for, or one that was built again, or any."""
    for image in corpus.images:
        if image.name == name or (name is None and image.name.endswith("-rebuilt")):
            return image
    if name is not None:
        raise SystemExit(f"{corpus.name} has no image {name}")
    return corpus.images[-1]


def _context(corpus: Corpus, more: CorpusImage) -> dict[str, Any]:
    return {
        "corpus": corpus.name,
        "images": len(corpus.images),
        "unique_layers": len(corpus.unique_layers()),
        "tar_bytes": corpus.tar_bytes(),
        "gzip_bytes": corpus.gzip_bytes(),
        "unpacked_bytes": corpus.unpacked_bytes(),
        "one_more": more.name,
        "commit": commit(_PROJECT),
        "machine": machine(),
    }


def _inputs(stack: ExitStack, corpus: Corpus, present: Sequence[Peer], folder: Path) -> Inputs:
    """Make what the peers that are here read; a registry runs until the stack is left."""
    inputs = Inputs(corpus)
    sources = {peer.source for peer in present if peer.name not in LAYERSTORE}
    names = {peer.name for peer in present}
    if sources & {PLAIN, TREES}:
        inputs.tars = extract_layers(corpus, folder / "tars")
    if TREES in sources:
        (folder / "trees").mkdir()
        inputs.trees = {
            diff_id: _unpack(path, folder / "trees" / diff_id[7:])
            for diff_id, path in inputs.tars.items()
        }
    if "ctr" in names:
        inputs.layout_tars = layout_tars(corpus, folder / "layouts")
    if "ctr-pull" in names:
        place = folder / "upstream"
        place.mkdir()
        _, inputs.registry = stack.enter_context(registry(place, place / "store"))
        (place / "address").write_text(inputs.registry)
        for command in PEERS["registry"].add(inputs, place, corpus.images):
            subprocess.run(command, check=True, capture_output=True)
    return inputs


def _unpack(tar: Path, target: Path) -> Path:
    target.mkdir()
    subprocess.run(["tar", "-x", "-p", "-C", str(target), "-f", str(tar)], check=True)
    return target


def _run_rounds(
    present: Sequence[Peer],
    inputs: Inputs,
    first: Sequence[CorpusImage],
    more: CorpusImage,
    folder: Path,
    options: argparse.Namespace,
) -> Iterator[dict[str, Any]]:
    """Everybody in turns, so that what else the machine does meets all alike."""
    rounds: dict[str, list[dict[str, Any]]] = {peer.name: [] for peer in present}
    failed: dict[str, str] = {}
    for number in range(options.rounds):
        for peer in present:
            if peer.name in failed or (number and peer.is_slow):
                continue
            try:
                rounds[peer.name].append(_run_peer(peer, inputs, first, more, folder / peer.name))
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                failed[peer.name] = str(error)
            finally:
                unmount_below(folder / peer.name)
                shutil.rmtree(folder / peer.name, ignore_errors=True)
            said = failed.get(peer.name) or f"{rounds[peer.name][-1]['ingest_s']:.2f} s"
            print(f"  {peer.name:18} {said}", file=sys.stderr, flush=True)
    for peer in present:
        about = {"name": peer.name, "source": peer.source, "note": peer.note}
        about["version"] = str(peer.found_version())
        if peer.name in failed:
            yield {**about, "failed": failed[peer.name]}
        else:
            yield {**about, **_medians(rounds[peer.name])}


def _run_peer(
    peer: Peer, inputs: Inputs, first: Sequence[CorpusImage], more: CorpusImage, folder: Path
) -> dict[str, Any]:
    """One round of one program."""
    folder.mkdir()
    environment = {**peer.prepare(folder), "PYTHONPATH": str(_PROJECT)}
    store, target = folder / peer.store, folder / "root"
    target.mkdir()
    warm(inputs.paths(peer.source))
    with peer.running(folder) as daemons:

        def timed(commands: Iterable[Sequence[str]]) -> Cost:
            return run(commands, environment, folder, daemons)

        ingest = peer.add(inputs, folder, [*first, more] if peer.is_whole else first)
        costs = [timed(ingest)]
        before = disk_bytes(store)
        result: dict[str, Any] = {}
        if not peer.is_whole:
            costs.append(timed(peer.add(inputs, folder, [more])))
            result["one_more_bytes"] = disk_bytes(store) - before
            result["one_more_s"] = costs[1].wall_s
        result["disk_bytes"] = disk_bytes(store)
        result["ingest_s"] = sum(cost.wall_s for cost in costs)
        result["cpu_s"] = sum(cost.cpu_s for cost in costs)
        commands = {"ingest": ingest[:1]}
        if peer.show is not None:
            commands["root"] = peer.show(inputs, folder, more, target)
            result["root_s"] = timed([*commands["root"], ["ls", str(target)]]).wall_s
            timed(peer.hide(folder, target))
        if peer.repeats:
            again = timed(peer.add(inputs, folder, [*first, more]))
            costs.append(again)
            result["again_s"] = again.wall_s
        result["peak_rss_bytes"] = max(cost.peak_rss for cost in costs)
    result["commands"] = {
        name: [_shown(command, inputs, folder) for command in some]
        for name, some in commands.items()
    }
    return result


def _shown(command: Sequence[str], inputs: Inputs, folder: Path) -> str:
    """A command as a reader can use it, cut where it names file after file."""
    said = " ".join(command).replace(str(folder), "WORK").replace(str(folder.parent), "WORK")
    source = str(inputs.corpus.images[0].layout.parent.parent)
    said = said.replace(source, "CORPUS").replace(sys.executable, "python")
    return said if len(said) <= 300 else said[:300] + " ..."


def _medians(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Medians of all figures; the commands of the last round."""
    figures = {
        name: round(median(one[name] for one in rounds), 3)
        for name, value in rounds[-1].items()
        if isinstance(value, int | float)
    }
    return {"rounds": len(rounds), **figures, "commands": rounds[-1]["commands"]}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
