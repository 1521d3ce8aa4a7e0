"""A music library that is the same on every machine: fixed random seed, keys by uuid5."""
import datetime
import json
import random
import uuid

from psycopg2.extras import execute_values

SIZES = {"none": 0, "small": 50, "medium": 500, "large": 5000}  # albums
TRACKS_PER_ALBUM = 10
PLAYS_PER_ALBUM = 40
EPOCH = datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc)

USERS = ["ana", "björn", "o'connor", "小林", "dj_🎧"]
GENRES = ["Rock", "Jazz", "R&B", "Música clásica", "J-ポップ", "Drum'n'Bass"]
# What breaks quoting, COPY's escapes, psql's variables and careless encodings.
NAMES = [
    "Rock 'n' \"Roll\"", "Ænima – Ünïcödé", "夜に駆ける", "Back\\slash \\N \\.", "Semi;colon -- comment",
    "$dollar$ 'quoted' $1", "100 % :variable :'x'", "Två\nrader\toch tabb", "Fiesta 🎉🎸👩‍🎤", "مرحبا", "<b>&amp;</b>", "{{ braces }}",
]


def key(kind, *parts):
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(["echo", kind, *map(str, parts)])))


def jpeg(source, size):
    """Bytes that look like a JPEG and don't compress."""
    return b"\xff\xd8\xff\xe0\x00\x10JFIF\x00\x01\x01" + source.randbytes(size) + b"\xff\xd9"


def seed(connection, size, cover_kb, write_cover, write_upload):
    """Fills an empty library, files before the rows that name them; returns the number of albums."""
    albums = SIZES[size] if size in SIZES else int(size)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM users")
        if not albums or cursor.fetchone()[0]:
            return 0
        source = random.Random(4567)

        def fill(table, columns, rows):
            execute_values(cursor, f"INSERT INTO {table} ({columns}) VALUES %s", rows, page_size=1000)

        users = [key("user", name) for name in USERS]
        fill("users", "id, username, password_hash, is_admin, settings, created_at", [
            (users[i], name, "$2b$12$" + "x" * 53, i == 0, json.dumps({"theme": "dark", "name": name}), EPOCH)
            for i, name in enumerate(USERS)])
        fill("genres", "name", [(name,) for name in GENRES])
        artists = [key("artist", i) for i in range(max(1, albums // 3))]
        fill("artists", "id, name", [(k, f"{NAMES[i % len(NAMES)]} & friends {i}") for i, k in enumerate(artists)])

        rows = []
        for i in range(albums):
            album = key("album", i)
            cover = write_cover(album, jpeg(source, int(cover_kb * 1024 * source.uniform(0.5, 1.5))))
            rows.append((album, artists[i % len(artists)], 1 + i % len(GENRES),
                         f"{NAMES[i % len(NAMES)]} vol. {i}", 1960 + i % 65, cover))
        fill("albums", "id, artist_id, genre_id, name, year, cover_path", rows)

        tracks = [key("track", i) for i in range(albums * TRACKS_PER_ALBUM)]
        fill("tracks", "id, album_id, number, title, duration, tags", [
            (k, rows[i // TRACKS_PER_ALBUM][0], 1 + i % TRACKS_PER_ALBUM, f"{NAMES[i * 7 % len(NAMES)]} #{i}",
             datetime.timedelta(seconds=source.randrange(90, 600)), json.dumps({"bpm": source.randrange(60, 200), "mood": "🎵"}))
            for i, k in enumerate(tracks)])

        plays = [(key("play", i), source.choice(users), source.choice(tracks),
                  source.choice(["library", "playlist", "radio", "share"]), EPOCH + datetime.timedelta(minutes=i))
                 for i in range(albums * PLAYS_PER_ALBUM)]
        fill("play_history", "id, user_id, track_id, source, played_at", plays)
        cursor.execute("""INSERT INTO user_play_stats (user_id, track_id, plays)
            SELECT user_id, track_id, count(*) FROM play_history GROUP BY user_id, track_id""")

        for i, user in enumerate(users):
            playlists = [key("playlist", i, n) for n in range(2)]
            fill("playlists", "id, user_id, name", [
                (k, user, f"{USERS[i]}'s {NAMES[(i + n) % len(NAMES)]}") for n, k in enumerate(playlists)])
            for playlist in playlists:
                fill("playlist_tracks", "playlist_id, position, track_id", [
                    (playlist, n, track) for n, track in enumerate(source.sample(tracks, 10), 1)])
            fill("user_ratings", "id, user_id, track_id, rating", [
                (key("rating", i, track), user, track, source.randint(1, 5)) for track in source.sample(tracks, 10)])
            queue = source.sample(tracks, 5)
            fill("play_queue", "user_id, current_track, items", [(user, queue[0], json.dumps(queue))])
            fill("bookmarks", "id, user_id, track_id, at, comment", [
                (key("bookmark", i), user, queue[1], datetime.timedelta(seconds=42), NAMES[i])])
            fill("shares", "id, user_id, kind, target, token", [
                (key("share", i), user, "playlist", playlists[0], key("token", i))])
        fill("radio_stations", "id, name, url", [
            (key("radio", i), f"Radio {NAMES[i]}", f"https://radio.example/{i}?q=%20&x=1") for i in range(3)])
        write_upload("Björk – 'Jóga' 🎵.mp3", source.randbytes(64 * 1024))
        return albums
