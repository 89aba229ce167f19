-- What became of the items that a monitor saw lately.
CREATE INDEX items_by_time ON items (monitor, seen_us);

-- Alerts of the daemon, of all monitors.
CREATE INDEX alerts_by_name ON alerts (name);

-- Days of which the digest was sent, `2026-01-02`.
CREATE TABLE digests (
    day   TEXT PRIMARY KEY,
    at_us INTEGER NOT NULL
) WITHOUT ROWID;
