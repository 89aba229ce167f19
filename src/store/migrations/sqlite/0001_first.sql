-- Times are microseconds since the epoch (UTC). Ids that assayd derives are UUID text; keys are 16-byte hashes.

CREATE TABLE monitors (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- How far a monitor has read its source. A source of another name starts anew.
CREATE TABLE watermarks (
    monitor    INTEGER NOT NULL,
    source_key TEXT NOT NULL,
    at_us      INTEGER NOT NULL,
    PRIMARY KEY (monitor, source_key)
) WITHOUT ROWID;

CREATE TABLE runs (
    id          TEXT PRIMARY KEY,
    monitor     INTEGER NOT NULL,
    slot_us     INTEGER NOT NULL,
    trigger     TEXT NOT NULL,
    status      TEXT NOT NULL,
    seed        INTEGER NOT NULL,
    publish     INTEGER NOT NULL,
    started_us  INTEGER NOT NULL,
    finished_us INTEGER,
    -- 1 once the whole draw is stored: a resumed run then draws nothing more.
    drawn       INTEGER NOT NULL DEFAULT 0,
    new_items   INTEGER NOT NULL DEFAULT 0,
    report      TEXT
);
CREATE INDEX runs_by_monitor ON runs (monitor, started_us);
CREATE INDEX runs_open ON runs (monitor) WHERE status = 'running';

-- The decision ledger: one row an item and monitor, for as long as the item has to be remembered.
CREATE TABLE items (
    id         INTEGER PRIMARY KEY,
    key        BLOB NOT NULL UNIQUE,
    monitor    INTEGER NOT NULL,
    item_id    TEXT NOT NULL,
    item_us    INTEGER NOT NULL,
    decision   TEXT NOT NULL,
    reason     TEXT NOT NULL,
    run_id     TEXT NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    seen_us    INTEGER NOT NULL,
    decided_us INTEGER NOT NULL
);

-- Items drawn and not finally decided, with what is needed to judge them when the source no longer has it.
CREATE TABLE pending (
    item        INTEGER PRIMARY KEY,
    monitor     INTEGER NOT NULL,
    state       TEXT NOT NULL,
    item_us     INTEGER NOT NULL,
    first_us    INTEGER NOT NULL,
    trace       TEXT NOT NULL
);
CREATE INDEX pending_by_monitor ON pending (monitor, item_us);

-- What happened to an item before its final decision: failed and deferred attempts.
CREATE TABLE item_events (
    item     INTEGER NOT NULL,
    at_us    INTEGER NOT NULL,
    run_id   TEXT NOT NULL,
    decision TEXT NOT NULL,
    reason   TEXT NOT NULL
);
CREATE INDEX item_events_by_item ON item_events (item);

CREATE TABLE scores (
    id             INTEGER PRIMARY KEY,
    score_id       TEXT NOT NULL UNIQUE,
    run_id         TEXT NOT NULL,
    monitor        INTEGER NOT NULL,
    item           INTEGER NOT NULL,
    metric         TEXT NOT NULL,
    revision       TEXT NOT NULL,
    item_id        TEXT NOT NULL,
    trace_id       TEXT,
    observation_id TEXT,
    environment    TEXT,
    url            TEXT,
    item_us        INTEGER NOT NULL,
    outcome        TEXT NOT NULL,
    data_type      TEXT NOT NULL,
    value          REAL,
    raw            REAL,
    label          TEXT,
    passed         INTEGER,
    reason         TEXT NOT NULL,
    provider       TEXT,
    model          TEXT,
    input_tokens   INTEGER,
    output_tokens  INTEGER,
    cost_usd       REAL,
    latency_ms     INTEGER,
    created_us     INTEGER NOT NULL
);
CREATE INDEX scores_by_metric ON scores (monitor, metric, created_us);
CREATE INDEX scores_by_item ON scores (item);

CREATE TABLE queues (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
);

-- One row a score and queue. state: 0 waiting, 1 delivered, 2 dead. next_us: when it may be sent; of a dead row, when it died.
CREATE TABLE outbox (
    id           INTEGER PRIMARY KEY,
    queue        INTEGER NOT NULL,
    score        INTEGER NOT NULL,
    state        INTEGER NOT NULL DEFAULT 0,
    attempts     INTEGER NOT NULL DEFAULT 0,
    next_us      INTEGER NOT NULL DEFAULT 0,
    error        TEXT,
    delivered_us INTEGER,
    UNIQUE (score, queue)
);
CREATE INDEX outbox_waiting ON outbox (queue, next_us, id) WHERE state = 0;
CREATE INDEX outbox_dead ON outbox (queue) WHERE state = 2;

CREATE TABLE alerts (
    monitor    INTEGER NOT NULL,
    name       TEXT NOT NULL,
    state      TEXT NOT NULL,
    reason     TEXT NOT NULL,
    memory     TEXT NOT NULL,
    updated_us INTEGER NOT NULL,
    PRIMARY KEY (monitor, name)
) WITHOUT ROWID;

-- Messages to people. state as in outbox.
CREATE TABLE notices (
    id          INTEGER PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    route       TEXT NOT NULL,
    event       TEXT NOT NULL,
    state       INTEGER NOT NULL DEFAULT 0,
    attempts    INTEGER NOT NULL DEFAULT 0,
    next_us     INTEGER NOT NULL DEFAULT 0,
    error       TEXT,
    thread      TEXT,
    created_us  INTEGER NOT NULL
);
CREATE INDEX notices_waiting ON notices (id) WHERE state = 0;
CREATE INDEX notices_by_fingerprint ON notices (fingerprint, route);
