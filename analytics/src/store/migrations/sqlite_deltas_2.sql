-- Whether records that were due are gone, and the end of the log was not reached since.
ALTER TABLE chain ADD COLUMN gap INTEGER NOT NULL DEFAULT 0;
