-- Runs whose scores go out under one name, as a run of a Langfuse dataset: what their means are taken over.
CREATE TABLE run_groups (
    name   TEXT NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (name, run_id)
) WITHOUT ROWID;

-- Means are taken run by run.
CREATE INDEX scores_by_run ON scores (run_id);
