CREATE TABLE chain (
    partition INTEGER NOT NULL PRIMARY KEY,
    base INTEGER NOT NULL,
    head INTEGER NOT NULL,
    delta_position INTEGER NOT NULL,
    counted INTEGER NOT NULL,
    duplicate INTEGER NOT NULL,
    late INTEGER NOT NULL,
    dead_lettered INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    no_record INTEGER NOT NULL,
    valid_batches INTEGER NOT NULL,
    void_batches INTEGER NOT NULL,
    watermark_us INTEGER NOT NULL,
    as_of_us INTEGER NOT NULL
);

CREATE TABLE delta (
    partition INTEGER NOT NULL,
    delta_offset INTEGER NOT NULL,
    payload BLOB NOT NULL,
    PRIMARY KEY (partition, delta_offset)
);
