"""A stand-in for the Echo server: the same folders, database, cache and endpoints, for tests.

Environment: DATABASE_URL, REDIS_HOST, REDIS_PASSWORD, as Echo's; PUID and PGID; ECHO_VERSION (which
migrations it knows; with "broken" in it, it never gets healthy); SEED_SIZE (none, small, medium,
large or a number of albums) and COVER_KB (mean size of a cover) for an empty database.

GET  /health, /api/health      200 when PostgreSQL and Redis answer, else 503
GET  /api/counts               {"public.users": 5, ...}, all from one snapshot
POST /api/plays                {"user", "track"} -> 201 {"id"}, only once it is committed
POST /api/ratings              {"user", "track", "rating"} -> the same
PUT  /api/covers/ALBUM_ID      the body becomes the album's cover -> 201 {"cover"}
GET  /api/covers/ALBUM_ID      the cover that the album's row names
POST /api/sessions             {"user"} -> 201 {"token"}, signed with JWT_SECRET
GET  /api/sessions/TOKEN       {"user"}, if the token is signed with today's JWT_SECRET
"""
import hashlib
import hmac
import json
import os
import pathlib
import secrets
import signal
import sys
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2
import redis

from migrations import migrate
from seed import seed

APP = pathlib.Path("/app")
VERSION = os.environ["ECHO_VERSION"]


class Folders:
    """Where things lie: everything in /app/data (unified), or /app/config and /app/uploads (classic)."""

    def __init__(self):
        data = APP / "data"
        self.unified = data.is_dir()
        self.config = data if self.unified else APP / "config"
        self.covers = data / "covers" if self.unified else APP / "uploads/covers"
        self.uploads = data / "uploads" if self.unified else APP / "uploads/music"
        self.logs = data / "logs" if self.unified else APP / "logs"
        self.all = [self.config, self.covers, self.uploads, self.logs] + ([data / "metadata"] if self.unified else [])

    def take(self, uid, gid):
        """New volumes belong to root, and Echo does not run as root."""
        for folder in self.all:
            folder.mkdir(parents=True, exist_ok=True)
            for path in (folder, folder.parent):
                if path != APP:
                    os.chown(path, uid, gid)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def write_file(path, content, mode=0o644):
    """Whole or not at all, and on the disk before anything speaks of it."""
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def the_row(cursor):
    row = cursor.fetchone()
    if row is None:
        raise LookupError("no such user or album")
    return row


class Echo:
    def __init__(self, folders):
        self.folders = folders
        self.lock = threading.Lock()
        self.connection = None
        self.redis = redis.Redis(
            host=os.environ.get("REDIS_HOST", "redis"), port=int(os.environ.get("REDIS_PORT", "6379")),
            password=os.environ.get("REDIS_PASSWORD"), socket_timeout=3, socket_connect_timeout=3)

    def connect(self):
        # Taken apart here: libpq refuses Echo's "?schema=public" and passwords that a URL should quote.
        url = urllib.parse.urlsplit(os.environ["DATABASE_URL"])
        return psycopg2.connect(
            host=url.hostname, port=url.port or 5432, dbname=url.path.lstrip("/"), connect_timeout=3,
            user=urllib.parse.unquote(url.username), password=urllib.parse.unquote(url.password),
            application_name="echo")

    def transaction(self, work):
        """Runs work(cursor) in one transaction. The connection stays open, as a pool's would."""
        with self.lock:
            try:
                if self.connection is None:
                    self.connection = self.connect()
                with self.connection, self.connection.cursor() as cursor:
                    return work(cursor)
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if self.connection is not None:
                    self.connection.close()
                self.connection = None
                raise

    def start(self):
        for attempt in range(60):
            try:
                self.connection = self.connect()
                break
            except psycopg2.OperationalError as error:
                print(f"waiting for the database: {error}".strip())
                time.sleep(1)
        else:
            raise SystemExit("the database did not answer within a minute")
        self.write_secrets()
        print(f"version {VERSION}, migrations: {migrate(self.connection, VERSION)}")
        seeded = seed(self.connection, os.environ.get("SEED_SIZE", "small"),
                      int(os.environ.get("COVER_KB", "40")), self.write_cover,
                      lambda name, content: write_file(self.folders.uploads / name, content))
        print(f"seeded albums: {seeded}")
        with open(self.folders.logs / "echo.log", "a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%FT%TZ', time.gmtime())} started {VERSION}\n")

    def write_secrets(self):
        path = self.folders.config / "secrets.env"
        if not path.exists():
            write_file(path, "".join(
                f"{name}={secrets.token_hex(32)}\n" for name in ("JWT_SECRET", "JWT_REFRESH_SECRET")).encode(), 0o600)
        if self.folders.unified and not (self.folders.config / "setup.json").exists():
            write_file(self.folders.config / "setup.json", b'{"completed": true}\n')

    def write_cover(self, album, content):
        """A new file per content: rows that name the old one stay true."""
        name = f"{album}-{hashlib.sha256(content).hexdigest()[:8]}.jpg"
        write_file(self.folders.covers / name, content)
        return name

    def health(self):
        if "broken" in VERSION:
            raise RuntimeError("this version is broken on purpose")
        self.redis.ping()
        self.transaction(lambda cursor: cursor.execute("SELECT FROM schema_migrations LIMIT 1"))
        return {"status": "ok", "version": VERSION}

    def counts(self):
        def work(cursor):
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            cursor.execute("SELECT relname FROM pg_stat_user_tables ORDER BY relname")
            names = [row[0] for row in cursor]
            cursor.execute(" UNION ALL ".join(f"SELECT 'public.{name}', count(*) FROM {name}" for name in names))
            return dict(cursor.fetchall())
        return self.transaction(work)

    def play(self, body):
        def work(cursor):
            cursor.execute("""INSERT INTO play_history (user_id, track_id)
                SELECT id, %s FROM users WHERE username = %s RETURNING id, user_id""", (body["track"], body["user"]))
            play, user = the_row(cursor)
            cursor.execute("""INSERT INTO user_play_stats (user_id, track_id, plays) VALUES (%s, %s, 1)
                ON CONFLICT (user_id, track_id) DO UPDATE SET plays = user_play_stats.plays + 1""", (user, body["track"]))
            return play
        return {"id": self.transaction(work)}

    def rate(self, body):
        def work(cursor):
            cursor.execute("""INSERT INTO user_ratings (user_id, track_id, rating)
                SELECT id, %s, %s FROM users WHERE username = %s
                ON CONFLICT (user_id, track_id) DO UPDATE SET rating = excluded.rating RETURNING id""",
                           (body["track"], body["rating"], body["user"]))
            return the_row(cursor)[0]
        return {"id": self.transaction(work)}

    def signed(self, user):
        values = dict(line.split("=", 1) for line in (self.folders.config / "secrets.env").read_text().split())
        mark = hmac.new(values["JWT_SECRET"].encode(), user.encode(), hashlib.sha256).hexdigest()
        return f"{user.encode().hex()}.{mark}"

    def open_session(self, body):
        user = self.transaction(lambda cursor: cursor.execute(
            "SELECT username FROM users WHERE username = %s", (body["user"],)) or the_row(cursor)[0])
        return {"token": self.signed(user)}

    def session(self, token):
        user = bytes.fromhex(token.partition(".")[0]).decode()
        if not hmac.compare_digest(token, self.signed(user)):
            raise LookupError("not a token of ours")
        return {"user": user}

    def cover(self, album):
        name = self.transaction(lambda cursor: cursor.execute(
            "SELECT cover_path FROM albums WHERE id = %s", (album,)) or the_row(cursor)[0])
        return (self.folders.covers / name).read_bytes()

    def set_cover(self, album, content):
        cover = self.write_cover(album, content)

        def work(cursor):
            cursor.execute("UPDATE albums SET cover_path = %s WHERE id = %s RETURNING id", (cover, album))
            the_row(cursor)
        self.transaction(work)
        return {"cover": cover}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    echo = None

    def route(self):
        echo, length = self.echo, self.headers.get("Content-Length")
        content = self.rfile.read(int(length or 0))
        folder, _slash, name = self.path.rpartition("/")
        routes = {
            "GET /health": (200, echo.health),
            "GET /api/health": (200, echo.health),
            "GET /api/counts": (200, echo.counts),
            "POST /api/plays": (201, lambda: echo.play(json.loads(content))),
            "POST /api/ratings": (201, lambda: echo.rate(json.loads(content))),
            "PUT /api/covers": (201, lambda: echo.set_cover(name, content)),
            "GET /api/covers": (200, lambda: echo.cover(name)),
            "POST /api/sessions": (201, lambda: echo.open_session(json.loads(content))),
            "GET /api/sessions": (200, lambda: echo.session(name)),
        }
        route = routes.get(f"{self.command} {self.path}") or routes.get(f"{self.command} {folder}")
        if route is None:
            self.answer(404, {"status": "error", "message": f"nothing at {self.path}"})
        elif self.command != "GET" and length is None:
            self.answer(411, {"status": "error", "message": "a Content-Length is required"})
        else:
            self.answer(*self.attempt(*route))

    do_GET = do_POST = do_PUT = route

    @staticmethod
    def attempt(good, work):
        try:
            return good, work()
        except (psycopg2.DataError, psycopg2.IntegrityError, FileNotFoundError, LookupError, TypeError, ValueError) as error:
            status, message = 400, f"{type(error).__name__}: {error}"
        except (psycopg2.Error, redis.RedisError, RuntimeError) as error:
            status, message = 503, str(error)
        return status, {"status": "error", "message": message.strip()}

    def answer(self, status, result):
        content = result if isinstance(result, bytes) else json.dumps(result).encode()
        self.send_response(status)
        self.send_header("Content-Type", "image/jpeg" if isinstance(result, bytes) else "application/json")
        self.send_header("Content-Length", str(len(content)))
        if status >= 400:
            # What is left of a refused body must not be taken for the next request.
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_request(self, code="-", size="-"):
        if self.path not in ("/health", "/api/health"):
            super().log_request(code, size)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folders = Folders()
    folders.take(int(os.environ.get("PUID", "1001")), int(os.environ.get("PGID", "1001")))
    Handler.echo = Echo(folders)
    Handler.echo.start()
    ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "4567"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
