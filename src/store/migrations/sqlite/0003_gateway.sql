-- What of a budget is spent or set aside, in nano-USD; counts as spent for the next process. period_us: begin of the
-- period, 0 for a run's.
CREATE TABLE budgets (
    scope      TEXT NOT NULL,
    period_us  INTEGER NOT NULL,
    committed  INTEGER NOT NULL,
    updated_us INTEGER NOT NULL,
    PRIMARY KEY (scope, period_us)
) WITHOUT ROWID;

-- Answers of models, for profiles with a cache. The reply is JSON.
CREATE TABLE cache (
    key        BLOB PRIMARY KEY,
    expires_us INTEGER NOT NULL,
    reply      TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX cache_by_expiry ON cache (expires_us);

-- What models were called for, summed up by day. Empty monitor: a call from outside.
CREATE TABLE usage (
    day           TEXT NOT NULL,
    provider      TEXT NOT NULL,
    model         TEXT NOT NULL,
    monitor       TEXT NOT NULL,
    calls         INTEGER NOT NULL DEFAULT 0,
    errors        INTEGER NOT NULL DEFAULT 0,
    cached        INTEGER NOT NULL DEFAULT 0,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    cost_nano     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (day, provider, model, monitor)
) WITHOUT ROWID;

-- Single calls, kept by the hook `record`.
CREATE TABLE calls (
    id            INTEGER PRIMARY KEY,
    trace_id      TEXT NOT NULL,
    monitor       TEXT NOT NULL,
    metric        TEXT NOT NULL,
    item_id       TEXT NOT NULL,
    profile       TEXT NOT NULL,
    provider      TEXT NOT NULL,
    model         TEXT NOT NULL,
    prompt        TEXT NOT NULL,
    response      TEXT,
    input_tokens  INTEGER,
    output_tokens INTEGER,
    latency_ms    INTEGER NOT NULL,
    cost_usd      REAL,
    status        TEXT NOT NULL,
    error         TEXT,
    created_us    INTEGER NOT NULL
);
CREATE INDEX calls_by_time ON calls (created_us);
