-- The tables that unanimous keeps in a database. Made on demand where the role may; can be run again.
-- A role that uses them needs: GRANT USAGE ON SCHEMA unanimous TO role; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA unanimous TO role.

CREATE SCHEMA IF NOT EXISTS unanimous;

-- Notifications of prepared branches: written with the branch's work, deleted in the transaction that notifies.
CREATE TABLE IF NOT EXISTS unanimous.outbox (
    branch text NOT NULL,
    n integer NOT NULL,
    channel text NOT NULL,
    payload text NOT NULL,
    PRIMARY KEY (branch, n)
);
