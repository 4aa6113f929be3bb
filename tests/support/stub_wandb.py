"""A stub W&B server on loopback for online runs and `wandb sync`. It records all requests and can simulate faults."""

import argparse
import gzip
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEHAVIOURS = ("good", "silent", "wrong_key", "error")


class Stub:
    """A stub server in its own process, which can be killed, stopped and restarted."""

    def __init__(self, folder: Path, behaviour: str = "good", port: int = 0):
        self.folder, self.port = folder, port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.start(behaviour)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, behaviour: str = "good") -> None:
        """Serve on the same port; earlier requests are kept."""
        command = [sys.executable, __file__, str(self.folder), "--port", str(self.port), "--behaviour", behaviour]
        self.process = subprocess.Popen(command)
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, "the stub server did not start"
                time.sleep(0.05)

    def kill(self) -> None:
        """End the server: connections are refused."""
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """Stop the server: the kernel still accepts connections, but no request is answered."""
        self.process.send_signal(signal.SIGSTOP)

    def rows(self, run: str | None = None) -> list[dict]:
        """Return the history of a run (default: the only run). A later line replaces an earlier one with the same
        number."""
        files = self._received(run, "wandb-history.jsonl")
        return [row for _, row in sorted(files.items())]

    def config(self, run: str | None = None) -> dict:
        """Return the configuration that was uploaded with the run."""
        configs = [json.loads(text) for text in self._variables("config", run)]
        return {name: entry["value"] for name, entry in configs[-1].items() if name != "_wandb"}

    def runs(self) -> list[str]:
        """Return the ids of the runs, in order of their first line."""
        return list(dict.fromkeys(event["run"] for event in self.events() if event["kind"] == "lines"))

    def events(self) -> list[dict]:
        """Return all requests, in order."""
        path = self.folder / "received.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def views(self) -> list[dict]:
        """Return the saved views as they were sent."""
        return [json.loads(text) for text in self._variables("spec", None)]

    def uploaded(self) -> set[str]:
        """Return the names of the uploaded files."""
        return {event["name"] for event in self.events() if event["kind"] == "file"}

    def _received(self, run: str | None, file: str) -> dict[int, dict]:
        if run is None:
            runs = self.runs()
            assert len(runs) <= 1, f"several runs: {runs}"
            run = runs[0] if runs else None
        lines: dict[int, dict] = {}
        for event in self.events():
            if event["kind"] == "lines" and event["run"] == run and file in event["files"]:
                chunk = event["files"][file]
                if chunk["offset"] == 0:  # as in W&B, a restarted run replaces the earlier rows
                    lines.clear()
                lines.update({chunk["offset"] + i: json.loads(line) for i, line in enumerate(chunk["content"])})
        return lines

    def _variables(self, name: str, run: str | None) -> list[str]:
        found = [event["variables"] for event in self.events() if event["kind"] == "graphql"]
        return [v[name] for v in found if v.get(name) and (run is None or v.get("name") == run)]


@contextmanager
def stub_server(folder: Path, behaviour: str = "good", port: int = 0):
    """Run a stub server within the block."""
    stub = Stub(folder, behaviour, port)
    try:
        yield stub
    finally:
        stub.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answer(query: str, variables: dict, base: str) -> dict:
    """Return the data of a GraphQL query; unknown fields are left out, which the client accepts."""
    if "upsertBucket" in query:
        project = {"name": variables.get("project"), "entity": {"name": "somebody"}}
        name = variables.get("name") or "unnamed"
        bucket = {"id": name, "name": name, "displayName": variables.get("displayName") or name, "project": project}
        return {"upsertBucket": {"bucket": {**bucket, "historyLineCount": 0}, "inserted": True}}
    if "createRunFiles" in query:
        run = variables.get("run") or "run"
        files = [{"name": name, "uploadUrl": f"{base}/upload/{run}/{name}"} for name in variables.get("files", [])]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}
    if "upsertView" in query:
        return {"upsertView": {"view": {"id": "1", "name": variables["name"]}, "inserted": True}}
    if "viewer" in query:
        return {"viewer": {"id": "1", "entity": "somebody", "username": "somebody", "flags": "{}"}}
    return {}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments) -> None:
        """Ignore errors: clients are killed on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        behaviour = self.server.behaviour
        if behaviour == "silent":
            time.sleep(3600)
        elif behaviour == "wrong_key":
            self._reply(401, {"errors": [{"message": "permission denied: invalid key"}], "error": "invalid key"})
        elif behaviour == "error":
            self._reply(500, {"error": "internal"})
        elif not self.path.startswith(("/graphql", "/files/", "/upload/")):  # the client's telemetry
            self._reply(404, {})
        else:
            self._reply(200, self._take(body))

    do_GET = do_POST = do_PUT = _serve

    def _take(self, body: bytes) -> dict:
        if self.path.startswith("/upload/"):
            target = self.server.folder / "files" / self.path.removeprefix("/upload/").replace("/", "~")
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(body)
            self._record({"kind": "file", "name": self.path.removeprefix("/upload/").partition("/")[2]})
            return {}
        data = json.loads(body) if body else {}
        if self.path.startswith("/files/"):
            run = re.fullmatch(r"/files/[^/]*/[^/]*/([^/]*)/file_stream", self.path)[1]
            self._record({"kind": "lines", "run": run, "files": data.get("files") or {}, "exit": data.get("exitcode")})
            return {"limits": {}}
        query, variables = data.get("query", ""), data.get("variables") or {}
        self._record({"kind": "graphql", "query": query.split("{")[0].strip(), "variables": variables})
        return {"data": _answer(query, variables, f"http://{self.headers['Host']}")}

    def _record(self, event: dict) -> None:
        with self.server.lock, (self.server.folder / "received.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def _reply(self, code: int, data: dict) -> None:
        content = json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--behaviour", choices=BEHAVIOURS, default="good")
    options = parser.parse_args()
    server = _Server(("127.0.0.1", options.port), _Handler)
    server.folder, server.behaviour, server.lock = options.folder, options.behaviour, threading.Lock()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the tested process
    server.serve_forever()


if __name__ == "__main__":
    main()
