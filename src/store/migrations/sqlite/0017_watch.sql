-- What became of the items that a monitor saw lately.
CREATE INDEX items_by_time ON items (monitor, seen_us);

-- Alerts of the daemon, of all monitors.
CREATE INDEX alerts_by_name ON alerts (name);
