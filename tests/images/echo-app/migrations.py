"""The schema, as numbered steps, each with the version that brought it. Shaped like Echo's."""

MIGRATIONS = [
    (1, "1.0.0", "base", """
        CREATE EXTENSION IF NOT EXISTS pg_trgm;
        CREATE TYPE share_kind AS ENUM ('track', 'album', 'playlist');
        CREATE TYPE play_source AS ENUM ('library', 'playlist', 'radio', 'share');

        CREATE TABLE users (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            username text NOT NULL UNIQUE,
            password_hash text NOT NULL,
            is_admin boolean NOT NULL DEFAULT false,
            settings jsonb NOT NULL DEFAULT '{}',
            created_at timestamptz NOT NULL DEFAULT now()
        );
        CREATE TABLE genres (id serial PRIMARY KEY, name text NOT NULL UNIQUE);
        CREATE TABLE artists (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            name text NOT NULL
        );
        CREATE TABLE albums (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            artist_id uuid NOT NULL REFERENCES artists ON DELETE CASCADE,
            genre_id integer REFERENCES genres,
            name text NOT NULL,
            year integer CHECK (year BETWEEN 1900 AND 2100),
            cover_path text
        );
        CREATE TABLE tracks (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            album_id uuid NOT NULL REFERENCES albums ON DELETE CASCADE,
            number integer NOT NULL,
            title text NOT NULL,
            duration interval NOT NULL,
            tags jsonb NOT NULL DEFAULT '{}',
            UNIQUE (album_id, number)
        );
        CREATE TABLE playlists (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            name text NOT NULL
        );
        CREATE TABLE playlist_tracks (
            playlist_id uuid NOT NULL REFERENCES playlists ON DELETE CASCADE,
            position integer NOT NULL,
            track_id uuid NOT NULL REFERENCES tracks ON DELETE CASCADE,
            PRIMARY KEY (playlist_id, position)
        );
        CREATE TABLE user_ratings (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            track_id uuid NOT NULL REFERENCES tracks ON DELETE CASCADE,
            rating smallint NOT NULL CHECK (rating BETWEEN 1 AND 5),
            UNIQUE (user_id, track_id)
        );
        CREATE TABLE play_history (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            track_id uuid NOT NULL REFERENCES tracks ON DELETE CASCADE,
            source play_source NOT NULL DEFAULT 'library',
            played_at timestamptz NOT NULL DEFAULT now()
        );
        CREATE TABLE user_play_stats (
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            track_id uuid NOT NULL REFERENCES tracks ON DELETE CASCADE,
            plays bigint NOT NULL DEFAULT 0,
            PRIMARY KEY (user_id, track_id)
        );
        CREATE TABLE play_queue (
            user_id uuid PRIMARY KEY REFERENCES users ON DELETE CASCADE,
            current_track uuid REFERENCES tracks ON DELETE SET NULL,
            items jsonb NOT NULL DEFAULT '[]'
        );
        CREATE TABLE bookmarks (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            track_id uuid NOT NULL REFERENCES tracks ON DELETE CASCADE,
            at interval NOT NULL,
            comment text
        );
        CREATE TABLE shares (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            kind share_kind NOT NULL,
            target uuid NOT NULL,
            token text NOT NULL UNIQUE
        );
        CREATE TABLE radio_stations (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            name text NOT NULL,
            url text NOT NULL
        );
    """),
    (2, "1.0.0", "search", """
        CREATE INDEX albums_name_trgm ON albums USING gin (name gin_trgm_ops);
        CREATE INDEX artists_name_trgm ON artists USING gin (name gin_trgm_ops);
        CREATE INDEX tracks_title_trgm ON tracks USING gin (title gin_trgm_ops);
        CREATE INDEX play_history_user ON play_history (user_id, played_at DESC);
    """),
    (3, "2.0.0", "loudness", """
        ALTER TABLE tracks ADD COLUMN loudness real;
        CREATE TABLE equalizer_presets (
            id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
            user_id uuid NOT NULL REFERENCES users ON DELETE CASCADE,
            bands jsonb NOT NULL
        );
    """),
]


def number(version):
    """Orders versions; what follows a dash does not count."""
    return tuple(int(part) for part in version.split("-")[0].split("."))


def migrate(connection, version):
    """Brings the schema up to this version, in one transaction; returns the steps it took."""
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(4567)")
        cursor.execute("""CREATE TABLE IF NOT EXISTS schema_migrations (
            id integer PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())""")
        cursor.execute("SELECT id FROM schema_migrations")
        applied = {row[0] for row in cursor}
        wanted = [step for step in MIGRATIONS if number(step[1]) <= number(version)]
        newer = applied - {step[0] for step in wanted}
        if newer:
            raise SystemExit(f"the schema is newer than version {version}: it has migrations {sorted(newer)}")
        taken = [step for step in wanted if step[0] not in applied]
        for step, _version, name, sql in taken:
            cursor.execute(sql)
            cursor.execute("INSERT INTO schema_migrations (id, name) VALUES (%s, %s)", (step, name))
        return [name for _step, _version, name, _sql in taken]
