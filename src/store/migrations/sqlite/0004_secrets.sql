-- Secrets of the settings (`secret:NAME`), each sealed under the master key with its name bound in.
CREATE TABLE secrets (
    name       TEXT PRIMARY KEY,
    nonce      BLOB NOT NULL,
    box        BLOB NOT NULL,
    created_us INTEGER NOT NULL,
    updated_us INTEGER NOT NULL
) WITHOUT ROWID;

-- One row: what makes a key of a master key that is a passphrase.
CREATE TABLE secrets_salt (
    salt BLOB NOT NULL
);
