"""Notes over HTTP, kept in PostgreSQL.

GET /        {"notes": […], "database": {…}, "application": {…}}
POST /notes  {"text": "…"} adds one
GET /health  200 once the database answers

The database is DATABASE_URL, or what PGHOST, PGUSER, PGPASSWORD and PGDATABASE say.
"""

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

MAX_BODY = 64 << 10
SCHEMA = "CREATE TABLE IF NOT EXISTS notes (id serial PRIMARY KEY, text text NOT NULL, at timestamptz DEFAULT now())"


class Database:
    """One connection, made at first use and again after a failure; one query at a time."""

    def __init__(self, url):
        self.url = url
        self.lock = threading.Lock()
        self.connection = None

    def query(self, statement, parameters=()):
        with self.lock:
            for attempt in (1, 2):
                try:
                    return self._query(statement, parameters)
                except (psycopg2.OperationalError, psycopg2.InterfaceError):
                    self.connection = None
                    if attempt == 2:
                        raise

    def _query(self, statement, parameters):
        if self.connection is None:
            self.connection = psycopg2.connect(self.url, connect_timeout=5)
            self.connection.autocommit = True
            with self.connection.cursor() as cursor:
                cursor.execute(SCHEMA)
        with self.connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    database = Database(os.environ.get("DATABASE_URL", ""))

    def do_GET(self):
        if self.path == "/health":
            self.respond(lambda: {"ok": self.database.query("SELECT 1") == [(1,)]})
        elif self.path == "/":
            self.respond(self.overview)
        else:
            self.send(404, {"error": "no such page"})

    def do_POST(self):
        try:
            length = int(self.headers.get("Content-Length", 0))
            if not 0 < length <= MAX_BODY:
                raise ValueError("a body is needed")
            text = json.loads(self.rfile.read(length))["text"]
        except (ValueError, KeyError, TypeError):
            self.close_connection = True
            return self.send(400, {"error": 'a JSON object with a "text" is needed'})
        if self.path != "/notes":
            return self.send(404, {"error": "no such page"})
        statement = "INSERT INTO notes (text) VALUES (%s) RETURNING id"
        return self.respond(lambda: {"id": self.database.query(statement, (str(text),))[0][0]}, 201)

    def overview(self):
        ((version, name),) = self.database.query(
            "SELECT current_setting('server_version'), current_database()"
        )
        notes = self.database.query("SELECT id, text, at FROM notes ORDER BY id")
        return {
            "notes": [
                {"id": number, "text": text, "at": at.isoformat()} for number, text, at in notes
            ],
            "database": {"version": version, "name": name, **self.kernel_of_database()},
            "application": {
                "kernel": os.uname().release,
                "boot_id": boot_id(),
                "host": os.uname().nodename,
            },
        }

    def kernel_of_database(self):
        """Which kernel the query ran on; needs a database user that may read the server's files."""
        try:
            statement = "SELECT trim(pg_read_file(%s)), trim(pg_read_file(%s))"
            files = ("/proc/sys/kernel/osrelease", "/proc/sys/kernel/random/boot_id")
            ((release, boot),) = self.database.query(statement, files)
        except psycopg2.Error:
            return {}
        return {"kernel": release.strip(), "boot_id": boot.strip()}

    def respond(self, answer, status=200):
        try:
            self.send(status, answer())
        except psycopg2.Error as error:
            self.send(503, {"error": f"database: {str(error).strip().splitlines()[0]}"})

    def send(self, status, value):
        body = json.dumps(value, indent=1).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def boot_id():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("0.0.0.0", 8000), Handler)
    print(f"listening on port 8000 ({time.process_time():.1f} s of processor time to start)")
    server.serve_forever()


if __name__ == "__main__":
    main()
