-- Messages that people are told together: what they know of a group's alerts, where that stands, and how far telling has come.
CREATE TABLE alert_groups (
    id          INTEGER PRIMARY KEY,
    key         TEXT NOT NULL UNIQUE,
    route       TEXT NOT NULL,
    labels      TEXT NOT NULL,
    wait_us     INTEGER NOT NULL,
    interval_us INTEGER NOT NULL,
    -- The newest event of each alert since the group was last quiet, as people know it.
    members     TEXT NOT NULL DEFAULT '[]',
    thread      TEXT,
    told_us     INTEGER,
    due_us      INTEGER NOT NULL,
    attempts    INTEGER NOT NULL DEFAULT 0,
    error       TEXT,
    -- Of a message that is being told: its last notice, how many pages of it were taken, and since when the next may have been.
    upto        INTEGER,
    pages       INTEGER NOT NULL DEFAULT 0,
    unsure_us   INTEGER
);

-- Until now each firing was a group of its own.
INSERT INTO alert_groups (key, route, labels, wait_us, interval_us, thread, due_us)
    SELECT fingerprint || ' ' || route, route, '{}', 0, 0, max(thread), 0 FROM notices GROUP BY fingerprint, route;
ALTER TABLE notices ADD COLUMN grp INTEGER REFERENCES alert_groups (id);
UPDATE notices SET grp = (SELECT id FROM alert_groups WHERE key = fingerprint || ' ' || notices.route);
ALTER TABLE notices DROP COLUMN attempts;
ALTER TABLE notices DROP COLUMN next_us;
ALTER TABLE notices DROP COLUMN thread;
CREATE INDEX notices_by_group ON notices (grp, state);
