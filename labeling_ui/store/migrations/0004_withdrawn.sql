-- Answers that an owner takes out of the count, and may put back. Leases know the state 'withdrawn' for them.

ALTER TABLE answers ADD COLUMN is_withdrawn INTEGER NOT NULL DEFAULT 0;
