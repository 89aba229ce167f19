-- Alerts that people do not want to hear of for a while. They end and are never changed; the body is JSON.
CREATE TABLE silences (
    id        TEXT PRIMARY KEY,
    starts_us INTEGER NOT NULL,
    ends_us   INTEGER NOT NULL,
    body      TEXT NOT NULL
);
CREATE INDEX silences_by_end ON silences (ends_us);
