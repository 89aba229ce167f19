-- A monitor's settings as its last run had them: a hash of all, and JSON of hashes by key.
CREATE TABLE versions (
    monitor     INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    parts       TEXT NOT NULL,
    updated_us  INTEGER NOT NULL
);
