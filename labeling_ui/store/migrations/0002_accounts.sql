-- Who may come in, and as what. Passwords and tokens are kept only as hashes.

CREATE TABLE accounts (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,                   -- 'annotator', 'reviewer', 'owner'
    password TEXT,                        -- 'scrypt$...'; none where a name alone, or a proxy, signs in
    is_active INTEGER NOT NULL,
    daily_limit INTEGER,                  -- answers a day, none for no limit
    time DOUBLE PRECISION NOT NULL
);

CREATE TABLE sessions (
    token_hash TEXT PRIMARY KEY,
    account TEXT NOT NULL REFERENCES accounts (name),
    expires DOUBLE PRECISION NOT NULL
);

CREATE TABLE invitations (
    token_hash TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    expires DOUBLE PRECISION NOT NULL,
    used_by TEXT
);

CREATE TABLE settings (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
