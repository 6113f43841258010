-- How many rebuilds were swapped in.
ALTER TABLE served ADD COLUMN generation BIGINT NOT NULL DEFAULT 0;

-- Per set of rows that a rebuild made, by how much its events ended otherwise than the chains say.
CREATE TABLE rebuilt (
    slot BIGINT NOT NULL CHECK (slot IN (0, 1)),
    partition INTEGER NOT NULL,
    generation BIGINT NOT NULL,
    counted BIGINT NOT NULL,
    duplicate BIGINT NOT NULL,
    late BIGINT NOT NULL,
    dead_lettered BIGINT NOT NULL,
    missing BIGINT NOT NULL,
    no_record BIGINT NOT NULL,
    PRIMARY KEY (slot, partition)
);
