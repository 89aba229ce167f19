-- The time that the means of a group bear: fixed when the group begins, since a mean of another day is another score.
CREATE TABLE run_group_starts (
    name     TEXT PRIMARY KEY,
    since_us INTEGER NOT NULL
) WITHOUT ROWID;
