-- What a sink said of the row itself, not of a sink that could not be served: how often it refused it for now, and since when.
ALTER TABLE outbox ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN failed_us INTEGER;
