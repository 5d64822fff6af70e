-- The tables that unanimous keeps in a database, in the schema `unanimous`. Made on demand where the role may; can be run again.
-- Times are microseconds since 1970: select to_timestamp(decided_at / 1e6), * from unanimous.decision order by decided_at desc limit 20;

CREATE SCHEMA IF NOT EXISTS unanimous;

-- One row: the version of these tables. `asked` grows when something that was read must be durable: a real write makes it so.
CREATE TABLE IF NOT EXISTS unanimous.format (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    version integer NOT NULL,
    asked bigint NOT NULL DEFAULT 0
);
INSERT INTO unanimous.format (version) VALUES (1) ON CONFLICT (one) DO NOTHING;

-- A row for each transaction that was decided here: by the commit of the work in this database (decider `carrier`), or by a node whose
-- decision log this is (decider `log`). An `abort` is a fence: somebody asked, found nothing, and made sure that no commit can follow.
-- finished_at: when every branch was known to be confirmed; for a fence, when it was made. note: for people.
CREATE TABLE IF NOT EXISTS unanimous.decision (
    transaction_id text PRIMARY KEY,
    decider text NOT NULL CHECK (decider IN ('carrier', 'log')),
    log text NOT NULL,
    counter bigint NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('commit', 'abort')),
    decided_at bigint NOT NULL,
    finished_at bigint,
    note text NOT NULL DEFAULT '',
    asked bigint NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS decision_by_end ON unanimous.decision (log, finished_at);

-- The branches of a committed transaction that must be confirmed, with the identity of their store.
CREATE TABLE IF NOT EXISTS unanimous.participant (
    transaction_id text NOT NULL,
    number integer NOT NULL,
    resource text NOT NULL,
    store text,
    PRIMARY KEY (transaction_id, number)
);

-- The runs of a decision log that could decide here, with the server (its system identifier, database and timeline). Nothing is presumed
-- of a transaction of another run, nor of one from before a promotion or a restore, which may have lost decisions.
CREATE TABLE IF NOT EXISTS unanimous.incarnation (
    decider text NOT NULL CHECK (decider IN ('carrier', 'log')),
    log text NOT NULL,
    counter bigint NOT NULL,
    nonce text NOT NULL,
    server text NOT NULL,
    started_at bigint NOT NULL,
    PRIMARY KEY (decider, log, counter, nonce)
);

-- For each run, the highest sequence number whose row was deleted: at or below it, no row says nothing.
CREATE TABLE IF NOT EXISTS unanimous.floor (
    decider text NOT NULL CHECK (decider IN ('carrier', 'log')),
    log text NOT NULL,
    counter bigint NOT NULL,
    nonce text NOT NULL,
    sequence bigint NOT NULL,
    PRIMARY KEY (decider, log, counter, nonce)
);

-- The nodes whose decision log is in this database, each with its present run. Who decides must find its own counter and nonce here.
CREATE TABLE IF NOT EXISTS unanimous.node (
    node text PRIMARY KEY,
    log text NOT NULL UNIQUE,
    counter bigint NOT NULL,
    nonce text NOT NULL,
    opened_at bigint NOT NULL
);

-- Notifications of prepared branches: written with the branch's work, deleted in the transaction that notifies.
CREATE TABLE IF NOT EXISTS unanimous.outbox (
    branch text NOT NULL,
    n integer NOT NULL,
    channel text NOT NULL,
    payload text NOT NULL,
    PRIMARY KEY (branch, n)
);

-- The idempotency keys of HTTP requests, with their first responses: written with the requests' work. transaction_id: the transaction that the
-- response was made in. headers: a line `name: value` for each. Expired rows are deleted by whoever keeps keys here.
CREATE TABLE IF NOT EXISTS unanimous.idempotency_key (
    scope text NOT NULL,
    key text NOT NULL,
    transaction_id text NOT NULL,
    expires_at bigint NOT NULL,
    fingerprint bytea,
    status integer,
    headers bytea,
    body bytea,
    PRIMARY KEY (scope, key)
);
CREATE INDEX IF NOT EXISTS idempotency_key_by_end ON unanimous.idempotency_key (expires_at);
