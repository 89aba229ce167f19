-- What a monitor judged lately, of all its metrics.
CREATE INDEX scores_by_time ON scores (monitor, created_us);
