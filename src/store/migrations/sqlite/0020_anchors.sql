-- What judges said of labelled anchors: of the whole set at the start (empty run_id), and of those that a run drew. No scores: they
-- say nothing of the product. anchor: hash of its texts and its label. agrees: null where there was no verdict to compare.
CREATE TABLE anchor_judgements (
    monitor    INTEGER NOT NULL,
    revision   TEXT NOT NULL,
    run_id     TEXT NOT NULL,
    metric     TEXT NOT NULL,
    anchor     TEXT NOT NULL,
    agrees     INTEGER,
    tries      INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    PRIMARY KEY (monitor, revision, run_id, metric, anchor)
) WITHOUT ROWID;
