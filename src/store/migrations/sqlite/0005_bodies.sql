-- Items on their way to sinks that want more than the score, as JSON; kept while a row of the outbox needs it. key: hash of
-- the item and its content.
CREATE TABLE bodies (
    id   INTEGER PRIMARY KEY,
    key  BLOB NOT NULL UNIQUE,
    body TEXT NOT NULL
);
ALTER TABLE outbox ADD COLUMN body INTEGER;
CREATE INDEX outbox_by_body ON outbox (body) WHERE body IS NOT NULL;
