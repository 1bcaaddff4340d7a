"""Real images at work in containerd, on layerstore: what nobody wants to wait for in CI, and a person runs before a release.

    python -m tests.clients.corpus_work CORPUS [--work FOLDER] [--only import,work,many,pull] [--images A,B]

CORPUS is what `tools/build-corpus.sh` makes. As root, with containerd, runc, skopeo and docker-registry. Each part says
what it does and stops at the first thing that is wrong.

    import   all images with `ctr images import`; each shows the same tree as through containerd's overlayfs
    work     containers do what their images are for: answer queries, serve pages, fit a model, make a key
    many     20 containers at once of five images; the service is killed while they run, and they work on
    pull     all images from a registry into an empty machine; the service is killed in every third pull
    (end)    of each machine: all is removed, and of snapshots, mounts and bytes nothing is left
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.daemons import registry
from layerstore.api import open_store
from layerstore.images.prune import PruneOptions
from tests.clients.images import tree_of
from tests.clients.machine import Machine, machine_in, wait
from tests.clients.servers import run, works
from tests.support.stores import assert_tight

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__: list[str] = []

_LAYERSTORE = ("--snapshotter", "layerstore")
_CONTAINERS = 20
_LONG_S = 500
_PARTS = ("import", "work", "many", "pull")


class _Job(NamedTuple):
    """What an image is for.

    Attributes:
        serve: the program of a container that stays; without one, the container sleeps.
        is_ready: a command in the container that succeeds once it can work.
        work: a command in the container that does the work, and checks what comes out.
    """

    serve: str
    is_ready: str
    work: str


_SLEEP = "exec sleep 3600"
_FLASK = """
import flask, threading, urllib.request, werkzeug.serving
app = flask.Flask("app")
app.route("/")(lambda: "page " * 1000)
server = werkzeug.serving.make_server("127.0.0.1", 8000, app)
threading.Thread(target=server.serve_forever, daemon=True).start()
assert urllib.request.urlopen("http://127.0.0.1:8000/").read() == b"page " * 1000
"""
_SQLITE = """
import sqlite3, json, ssl, hashlib
db = sqlite3.connect("/tmp/db")
db.execute("create table t (n integer)")
db.executemany("insert into t values (?)", ((n,) for n in range(10000)))
db.commit()
assert db.execute("select sum(n) from t").fetchone() == (49995000,)
import os; os.unlink("/tmp/db")
"""
_PANDAS = """
import numpy, pandas
frame = pandas.DataFrame({"k": numpy.arange(100000) % 7, "v": numpy.arange(100000.0)})
assert frame.groupby("k").v.sum().sum() == 4999950000.0
assert numpy.allclose(numpy.linalg.inv(numpy.diag([2.0, 4.0])), numpy.diag([0.5, 0.25]))
"""
_SKLEARN = """
import sklearn.datasets, sklearn.ensemble
x, y = sklearn.datasets.load_iris(return_X_y=True)
assert sklearn.ensemble.RandomForestClassifier(20, random_state=0).fit(x, y).score(x, y) > 0.95
"""
_NODE = """
require("http").get("http://127.0.0.1:3000/", r => r.on("data", d => process.exit(d == "ok" ? 0 : 1)))
  .on("error", () => process.exit(1))
"""


def _python(code: str, interpreter: str = "/opt/venv/bin/python3") -> _Job:
    return _Job(_SLEEP, "true", f"{interpreter} - <<'END'\n{code}\nEND")


_POSTGRES = _Job(
    "initdb -D /tmp/db >/dev/null && exec postgres -D /tmp/db -k /tmp -c listen_addresses=",
    "pg_isready -q -h /tmp",
    'psql -q -h /tmp postgres -c "drop table if exists t" -c "create table t as select * from generate_series(1, 100000) n" '
    '&& test "$(psql -At -h /tmp postgres -c "select sum(n) from t")" = 5000050000',
)
_JOBS = {
    "base-bookworm": _Job(_SLEEP, "true", "dpkg --verify coreutils && test -d /etc"),
    "python-bookworm": _python(_SQLITE),
    "py-flask": _python(_FLASK),
    "py-numpy-a": _python(_PANDAS),
    "py-numpy-b": _python(_PANDAS),
    "py-sklearn": _python(_SKLEARN),
    "nginx": _Job(
        "exec nginx -g 'daemon off;'",
        "curl -sf -o /dev/null http://127.0.0.1/",
        'test "$(curl -sf http://127.0.0.1/ | sha256sum)" = "$(sha256sum < /var/www/html/index.html)"',
    ),
    "redis": _Job(
        "exec redis-server --dir /tmp",
        "redis-cli ping",
        'redis-cli -r 1000 incr n >/dev/null && redis-cli save && test "$(redis-cli get n)" -ge 1000',
    ),
    "postgres": _POSTGRES,
    "node-app": _Job("exec node server.js serve", f"node -e '{_NODE}'", f"node -e '{_NODE}'"),
    "jre17": _Job(
        _SLEEP,
        "true",
        "rm -f /tmp/keys; K='keytool -keystore /tmp/keys -storepass secret' "
        "&& $K -genkeypair -alias a -keyalg RSA -dname CN=a && $K -list | grep -q PrivateKeyEntry",
    ),
}
_MANY = ("nginx", "redis", "postgres", "node-app", "python-bookworm")


def main(arguments: Sequence[str]) -> int:
    """Run the parts; an error is what was wrong."""
    parser = argparse.ArgumentParser(
        prog="corpus_work", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--work", type=Path, help="where stores go")
    parser.add_argument("--only", type=lambda text: text.split(","), default=_PARTS)
    parser.add_argument("--images", type=lambda text: text.split(","))
    options = parser.parse_args(arguments)
    names = options.images or sorted(
        path.stem for path in (options.corpus / "docker-archive").glob("*.tar")
    )
    with tempfile.TemporaryDirectory(prefix="work-", dir=options.work) as name:
        if set(options.only) & {"import", "work", "many"}:
            (folder := Path(name, "a")).mkdir()
            with machine_in(folder) as machine:
                _import_all(machine, options.corpus, names, compare="import" in options.only)
                if "work" in options.only:
                    _work_all(machine, [image for image in _JOBS if image in names])
                if "many" in options.only:
                    _run_many(machine, [image for image in _MANY if image in names])
                _remove_all(machine)
        if "pull" in options.only:
            (folder := Path(name, "b")).mkdir()
            with (
                registry(folder, folder / "registry") as (_, address),
                machine_in(folder) as machine,
            ):
                _pull_all(machine, options.corpus, names, address)
                _remove_all(machine)
    return 0


@contextmanager
def _told(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    print(f"ok {time.monotonic() - started:7.1f} s  {what}", flush=True)


def _import_all(machine: Machine, corpus: Path, names: Sequence[str], *, compare: bool) -> None:
    for name in names:
        words = (*machine.ctr, "images", "import", "--base-name", f"corpus/{name}")
        archive = corpus / f"docker-archive/{name}.tar"
        with _told(f"import {name}"):
            run(*words, "--digests=false", *_LAYERSTORE, archive, timeout_s=_LONG_S)
    for name in names if compare else ():
        started_ns = time.time_ns()
        words = (*machine.ctr, "images", "import", "--base-name", f"corpus/{name}")
        run(*words, "--digests=false", corpus / f"docker-archive/{name}.tar", timeout_s=_LONG_S)
        with _told(f"same tree as through overlayfs: {name}"):
            seen = [_tree(machine, by, name, started_ns) for by in ("overlayfs", "layerstore")]
            assert len(seen[0]) > 1000
            differ = {
                path
                for path in seen[0].keys() | seen[1].keys()
                if seen[0].get(path) != seen[1].get(path)
            }
            assert not differ, [
                (path, *(tree.get(path) for tree in seen)) for path in sorted(differ)[:5]
            ]


def _tree(machine: Machine, by: str, name: str, since_ns: int) -> dict[bytes, tuple[object, ...]]:
    target = machine.folder / "seen"
    target.mkdir()
    words = (*machine.ctr, "images")
    run(*words, "mount", "--snapshotter", by, f"docker.io/corpus/{name}:latest", target)
    try:
        return tree_of(target, since_ns)
    finally:
        run(*words, "unmount", "--snapshotter", by, "--rm", target)
        target.rmdir()


def _work_all(machine: Machine, names: Sequence[str]) -> None:
    for name in names:
        with _told(f"work {name}"):
            _start(machine, name, name)
            _ready(machine, name, name)
            _work(machine, name, name)
            machine.remove_container(name)


def _run_many(machine: Machine, names: Sequence[str]) -> None:
    containers = [
        (f"{names[n % len(names)]}-{n}", names[n % len(names)]) for n in range(_CONTAINERS)
    ]
    with ThreadPoolExecutor(5) as pool:

        def all_do(step: Callable[[Machine, str, str], None]) -> None:
            list(pool.map(lambda one: step(machine, *one), containers))

        with _told(f"start {len(containers)} containers of {len(names)} images"):
            all_do(_start)
        with _told("all are ready"):
            all_do(_ready)
        with _told("all work"):
            all_do(_work)
        machine.kill()
        with _told("all work on while the service is dead"):
            all_do(_work)
        with _told("the service is back"):
            machine.start_again()
        with _told("all work, and another one starts"):
            all_do(_work)
            _work_all(machine, names[:1])
        with _told("all are removed"):
            all_do(lambda machine, container, _: machine.remove_container(container))


def _pull_all(machine: Machine, corpus: Path, names: Sequence[str], address: str) -> None:
    for name in names:
        words = ("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false")
        to = f"docker://{address}/corpus/{name}:latest"
        run(*words, f"oci:{corpus}/oci/{name}:latest", to, timeout_s=_LONG_S)
    for number, name in enumerate(names):
        pull = [*machine.ctr, "images", "pull", "--plain-http", *_LAYERSTORE]
        pull.append(f"{address}/corpus/{name}:latest")
        if number % 3 == 0:
            with _told(f"pull {name}, and the service is killed in it"):
                _pull_killed(machine, pull, number)
        with _told(f"pull {name}"):
            run(*pull, timeout_s=_LONG_S)
        with _told(f"verify after {name}"), open_store(machine.store) as store:
            assert store.verify().damages == ()


def _pull_killed(machine: Machine, pull: list[str], number: int) -> None:
    """Kill while a layer is unpacked or committed, in turns, if there is one that is new."""
    what = "snapshots/*/fs/*" if number % 2 else "tmp/session-*.lock"
    with subprocess.Popen(pull, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as pulling:
        wait(lambda: pulling.poll() is not None or any(machine.store.glob(what)))
        machine.kill()
    print(f"   the pull ended with {pulling.returncode}", flush=True)
    machine.start_again()


def _start(machine: Machine, container: str, name: str) -> None:
    words = (*machine.ctr, "run", "--detach", *_LAYERSTORE)
    run(*words, f"docker.io/corpus/{name}:latest", container, "sh", "-c", _JOBS[name].serve)


def _ready(machine: Machine, container: str, name: str) -> None:
    wait(lambda: works(machine.exec_words(container, "sh", "-c", _JOBS[name].is_ready)))


def _work(machine: Machine, container: str, name: str) -> None:
    machine.exec(container, "sh", "-c", _JOBS[name].work)


def _remove_all(machine: Machine) -> None:
    with _told("all is removed, and nothing is left"):
        machine.remove_images()
        assert machine.snapshots() == []
        assert list((machine.store / "snapshots").iterdir()) == []
        assert machine.mounted() == []
        with open_store(machine.store) as store:
            store.prune(PruneOptions(everything=True))
            assert_tight(store)
            assert store.store.chunkfile.allocated_bytes() == 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
