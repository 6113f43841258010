-- How many rebuilds were swapped in.
ALTER TABLE served ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;

-- Per set of rows that a rebuild made, by how much its events ended otherwise than the chains say.
CREATE TABLE rebuilt (
    slot INTEGER NOT NULL CHECK (slot IN (0, 1)),
    partition INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    counted INTEGER NOT NULL,
    duplicate INTEGER NOT NULL,
    late INTEGER NOT NULL,
    dead_lettered INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    no_record INTEGER NOT NULL,
    PRIMARY KEY (slot, partition)
);
