-- Prompts kept in Langfuse, as they were last read: what is judged with while Langfuse does not answer. selector: `label` or
-- `version`. body: JSON (version, labels, prompt); null where none was ever read. fault: why the last look found none to judge with.
CREATE TABLE prompts (
    connection TEXT NOT NULL,
    name       TEXT NOT NULL,
    selector   TEXT NOT NULL,
    value      TEXT NOT NULL,
    body       TEXT,
    fault      TEXT,
    fetched_us INTEGER NOT NULL,
    PRIMARY KEY (connection, name, selector, value)
) WITHOUT ROWID;

-- Events that webhooks told, so that none counts twice. Forgotten once their signature is too old to be taken again.
CREATE TABLE webhook_events (
    sender TEXT NOT NULL,
    id     TEXT NOT NULL,
    at_us  INTEGER NOT NULL,
    PRIMARY KEY (sender, id)
) WITHOUT ROWID;
