"""The servers of a run, all on loopback: the origin, the stores, and the shaped line."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from paired.inputs import OWNER, File, Repo

KEY, SECRET, BUCKET = "benchmark", "benchmark-secret", "bench"


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1 that signs itself, and its key."""

    cert: Path
    key: Path


def make_certificate(folder: Path) -> Certificate:
    """By the openssl command, valid for two days."""
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    subprocess.run(
        [*request, *names, "-keyout", str(made.key), "-out", str(made.cert)],
        check=True,
        capture_output=True,
    )
    return made


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is ended with the block; it ends by SIGTERM, or is killed."""
    with log.open("ab") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes], seconds: float = 20) -> None:
    """Wait until something listens on `port`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if not probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.02)
    raise SystemExit(f"{process.args[0]} does not come up: see its log")


# -- the origin ----------------------------------------------------------------------------

_NGINX = """\
daemon off;
{user}
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 600;
  keepalive_requests 1000000;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  types {{ }}
  map_hash_max_size 65536;
  map_hash_bucket_size 256;
  map $repo $commit {{ default ""; {commits} }}
  map $repo/$path $sha256 {{ default ""; {digests} }}
  map $repo/$path $linked_size {{ default ""; {sizes} }}
  server {{
    listen 127.0.0.1:{port};
    {tls}
    location ~ ^/{owner}/(?<repo>[^/]+)/resolve/[^/]+/(?<path>.+)$ {{
      etag off;
      default_type application/octet-stream;
      add_header X-Repo-Commit $commit;
      add_header ETag '"$sha256"';
      add_header X-Linked-Etag '"$sha256"';
      add_header X-Linked-Size $linked_size;
      alias {repos}/$repo/files/$path;
    }}
    location ~ ^/api/models/{owner}/(?<repo>[^/]+)/tree/[^/]+$ {{
      default_type application/json;
      alias {repos}/$repo/tree.json;
    }}
    location ~ ^/api/models/{owner}/(?<repo>[^/]+)(/revision/[^/]+)?$ {{
      default_type application/json;
      alias {repos}/$repo/info.json;
    }}
    location / {{ default_type application/json; return 404 '{{"error": "not here"}}'; }}
  }}
}}
"""


@contextmanager
def origin(
    folder: Path, repos_folder: Path, repos: Sequence[Repo], certificate: Certificate | None = None
) -> Iterator[str]:
    """nginx as a hub: its files by sendfile, its documents as they stand. The URL."""
    if shutil.which("nginx") is None:
        raise SystemExit("nginx is needed: apt-get install nginx-light")
    folder.mkdir(parents=True)
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_nginx_config(folder, port, repos_folder, repos, certificate))
    with running(["nginx", "-c", str(config)], folder / "nginx.log") as server:
        wait_for(port, server)
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}"


def _nginx_config(
    folder: Path,
    port: int,
    repos_folder: Path,
    repos: Sequence[Repo],
    certificate: Certificate | None,
) -> str:
    files = [(f"{repo.name}/{file.path}", file) for repo in repos for file in repo.files]
    tls = ""
    if certificate:
        tls = f"ssl_certificate {certificate.cert}; ssl_certificate_key {certificate.key};"
    text = _NGINX.format(
        user="user root;" if os.geteuid() == 0 else "",
        folder=folder,
        port=port,
        owner=OWNER,
        repos=repos_folder,
        commits=" ".join(f"{repo.name} {repo.commit};" for repo in repos),
        digests=" ".join(f"{name} {file.sha256};" for name, file in files),
        sizes=" ".join(f"{name} {file.size};" for name, file in files),
        tls=tls,
    )
    return text.replace(f":{port};", f":{port} ssl;") if certificate else text


@contextmanager
def xet_hub(folder: Path, size: int) -> Iterator[tuple[str, Repo, str]]:
    """A hub that offers one file of `size` bytes by Xet: its URL, what it has, the Xet hash."""
    folder.mkdir(parents=True)
    script = Path(__file__).with_name("xet.py")
    command = [sys.executable, str(script), "serve", str(folder / "cas"), str(size)]
    with (folder / "hub.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        url, told = server.stdout.readline().decode().strip(), server.stdout.readline()
        if not told:
            raise SystemExit(f"no hub with Xet: {(folder / 'hub.log').read_text()[-3000:]}")
        file = json.loads(told)
        yield (
            url,
            Repo("xet", folder / "cas", (File("model.safetensors", size, file["sha256"]),)),
            file["hash"],
        )
    finally:
        server.stdin.close()
        server.wait()


# -- stores --------------------------------------------------------------------------------


@contextmanager
def null_store(
    binary: Path, log: Path, *, keep: bool = False, certificate: Certificate | None = None
) -> Iterator[str]:
    """The store that costs almost nothing; with `keep` it keeps all bytes in memory. The URL."""
    command = [str(binary), *(["--keep"] if keep else [])]
    if certificate:
        command += ["--cert", str(certificate.cert), "--key", str(certificate.key)]
    with running(command, log) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{port}"


@contextmanager
def seaweed(weed: Path, folder: Path) -> Iterator[str]:
    """SeaweedFS, a real S3 server that keeps everything on disk. The URL."""
    folder.mkdir(parents=True)
    rights = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = [{"accessKey": KEY, "secretKey": SECRET}]
    identities = [
        {"name": "benchmark", "credentials": keys, "actions": rights},
        {"name": "anonymous", "actions": rights},  # the limit program does not sign
    ]
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": identities}))
    master, volume, filer, s3 = _weed_ports(4)
    command = [str(weed), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}"]
    command += ["-s3", f"-s3.port={s3}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-s3.config={config}", f"-s3.localSocket={folder}/s3.sock"]
    command += [f"-filer.localSocket={folder}/filer.sock"]
    command += ["-volume.max=200", "-master.volumeSizeLimitMB=1024"]
    with (folder / "weed.out").open("wb") as out:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{s3}"
        try:
            wait_for(s3, server, 60)
            _make_bucket(url)
        except OSError as error:
            log = (folder / "weed.out").read_text(errors="replace")
            raise SystemExit(f"SeaweedFS does not come up: {error}\n{log[-3000:]}") from error
        yield url
    finally:
        server.terminate()
        server.wait()


def _weed_ports(count: int) -> list[int]:
    """Ports that are free, as are their gRPC twins, 10,000 above; no client's port lies there."""
    found = random.Random().sample(range(11_000, 22_000), 1000)
    free = (port for port in found if _is_free(port) and _is_free(port + 10_000))
    return [next(free) for _ in range(count)]


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _make_bucket(url: str, patience: float = 60) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT"))
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


# -- the line ------------------------------------------------------------------------------


@dataclass
class Line:
    """A shaped line to a server; `connections` is known when it has ended."""

    url: str
    connections: int = 0


@contextmanager
def line(
    binary: Path, to: str, log: Path, *, rtt_ms: float, mbit: float, most: int
) -> Iterator[Line]:
    """A line of `rtt_ms` to the server `to`: `mbit` a connection, `most` times that in all."""
    command = [str(binary), "--to", to.partition("://")[2], "--rtt-ms", str(rtt_ms)]
    command += ["--mbit", str(mbit), "--line-mbit", str(mbit * most)]
    with running(command, log) as server:
        assert server.stdout is not None
        made = Line(f"http://127.0.0.1:{int(server.stdout.readline())}")
        try:
            yield made
        finally:
            server.send_signal(signal.SIGTERM)
            made.connections = int(server.stdout.readline() or 0)
