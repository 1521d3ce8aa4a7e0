-- A database shaped like Echo's, the same on every machine, of about 1 GB at scale 1.
--   psql -v tracks=200000 -v plays=3300000 -f database.sql
\set ON_ERROR_STOP on
\set QUIET on

-- In one process, so that each row gets the same random numbers everywhere.
SET max_parallel_workers_per_gather = 0;
-- A container's /dev/shm has no room for workers that build indexes.
SET max_parallel_maintenance_workers = 0;
SET synchronous_commit = off;
SET maintenance_work_mem = '256MB';
SELECT setseed(0.4567) \g /dev/null

CREATE EXTENSION pg_trgm;
CREATE TYPE play_source AS ENUM ('library', 'playlist', 'radio', 'share');
CREATE TABLE users (id uuid, username text NOT NULL, settings jsonb NOT NULL, created_at timestamptz NOT NULL);
CREATE TABLE tracks (
    id uuid, album_id uuid NOT NULL, number integer NOT NULL, title text NOT NULL,
    path text NOT NULL, duration interval NOT NULL, tags jsonb NOT NULL);
CREATE TABLE play_history (
    id uuid, user_id uuid NOT NULL, track_id uuid NOT NULL, source play_source NOT NULL,
    played_at timestamptz NOT NULL, context jsonb NOT NULL);

INSERT INTO users
SELECT md5('user' || i)::uuid, 'user ' || i, '{"theme": "dark"}', timestamptz '2024-01-01 00:00Z' + i * interval '1 day'
FROM generate_series(1, 50) i;

INSERT INTO tracks
SELECT md5('track' || i)::uuid, md5('album' || i / 12)::uuid, i % 12 + 1,
    words[1 + floor(random() * 12)] || ' ' || words[1 + floor(random() * 12)] || ' ' || i,
    '/music/' || md5('artist' || i / 100) || '/' || md5('album' || i / 12) || '/' || i % 12 + 1 || '.flac',
    random() * interval '10 minutes',
    jsonb_build_object('bpm', floor(60 + random() * 140), 'gain', random(), 'isrc', md5(random()::text), 'mood', words[1 + floor(random() * 12)])
FROM generate_series(1, :tracks) i,
    (SELECT ARRAY['Rock', 'Ænima', '夜に駆ける', 'O''Connor', 'Jóga', 'Fiesta', 'Två', 'مرحبا', 'Blue', 'Night', 'Drum', 'Song'] AS words) w;

INSERT INTO play_history
SELECT md5('play' || i)::uuid, md5('user' || 1 + floor(random() * 50))::uuid, md5('track' || 1 + floor(random() * :tracks))::uuid,
    (ARRAY['library', 'playlist', 'radio', 'share'])[1 + floor(random() * 4)]::play_source,
    timestamptz '2024-01-01 00:00Z' + i * interval '17 seconds',
    jsonb_build_object('device', 'device-' || floor(random() * 20), 'seconds', floor(random() * 600), 'volume', random(), 'shuffle', random() < 0.5)
FROM generate_series(1, :plays) i;

ALTER TABLE users ADD PRIMARY KEY (id);
ALTER TABLE tracks ADD PRIMARY KEY (id);
ALTER TABLE play_history ADD PRIMARY KEY (id);
ALTER TABLE play_history ADD FOREIGN KEY (user_id) REFERENCES users, ADD FOREIGN KEY (track_id) REFERENCES tracks;
CREATE INDEX tracks_title_trgm ON tracks USING gin (title gin_trgm_ops);
CREATE INDEX play_history_user ON play_history (user_id, played_at DESC);

VACUUM ANALYZE;
CHECKPOINT;
