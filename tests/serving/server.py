"""An nginx of our own, and a web application behind it, for one test."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

USER = "www-data"

CONFIGURATION = r"""
user {user};
worker_processes 1;
daemon off;
pid {base}/nginx.pid;
error_log {base}/error.log info;
events {{ worker_connections 64; }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    types {{ image/jpeg jpg; }}
    client_body_temp_path {base}/body;
    proxy_temp_path {base}/proxy;
    fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi;
    scgi_temp_path {base}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location /files/ {{ alias {mount}/; }}
        # Old versions, deleted files and the control directory are no business of the web's.
        location ~ /\.(versions|cas)(/|$) {{ return 404; }}
        location /app/ {{ proxy_pass http://127.0.0.1:{application}; }}
        location /blobs/ {{
            internal;
            alias {store}/blobs/;
            # Of a blob, the time of its file says nothing; the application's ETag says it all.
            etag off;
            if_modified_since off;
            add_header Last-Modified "";
            add_header ETag $upstream_http_etag;
        }}
        location /mount/ {{
            internal;
            alias {mount}/;
        }}
    }}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def ask(control: Path, line: str) -> dict[str, Any]:
    """The answer of a command that succeeds."""
    fd = os.open(control, os.O_RDWR)
    try:
        os.write(fd, line.encode() + b"\n")
        data = b""
        while part := os.read(fd, 1 << 16):
            data += part
    finally:
        os.close(fd)
    answer: dict[str, Any] = json.loads(data.splitlines()[-1])
    return answer


class Application(ThreadingHTTPServer):
    """Decides who may have what, and leaves the sending to nginx: `/app/NAME` is the file NAME of the mount."""

    def __init__(self, mount: Path) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = unquote(self.path.removeprefix("/app/"))
                content = ask(mount / ".cas" / "control", f"info '{name}'")["content"]
                etag = f'"{content["digest"]}"'
                if self.headers["If-None-Match"] == etag:
                    self.send_response(304)
                    self.end_headers()
                    return
                # What is in pieces, the mount puts together.
                whole = content["kind"] == "blob"
                target = f"/{content['blob']}" if whole else f"/mount/{quote(name)}"
                self.send_response(200)
                self.send_header("X-Accel-Redirect", target)
                self.send_header("Content-Type", "image/x-of-the-application")
                self.send_header("ETag", etag)
                self.end_headers()

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()


class Nginx:
    """A running nginx whose workers are `www-data`; `prelude` are words before its command, such as strace's."""

    def __init__(self, base: Path, mount: Path, store: Path, *, prelude: tuple[str, ...] = ()) -> None:
        base.mkdir(mode=0o755)
        self.base = base
        self.application = Application(mount)
        self.port = free_port()
        configuration = base / "nginx.conf"
        configuration.write_text(
            CONFIGURATION.format(
                user=USER,
                base=base,
                port=self.port,
                mount=mount,
                store=store,
                application=self.application.server_address[1],
            )
        )
        command = [*prelude, "nginx", "-p", str(base), "-c", str(configuration)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not self._listens():
            assert self._process.poll() is None, (base / "error.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def get(self, path: str, **headers: str) -> tuple[HTTPResponse, bytes]:
        """Ask for a path, with headers whose names have underscores for hyphens."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        try:
            connection.request("GET", path, headers=named)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def stop(self) -> None:
        self.application.shutdown()
        self.application.server_close()
        # Of nginx itself, also if it is traced: so its workers end with it.
        pid = int((self.base / "nginx.pid").read_text())
        os.kill(pid, 15)
        self._process.wait(30)
