-- Source offsets whose batches retention removed unread, and where in metrics-data the latest hole was found.
ALTER TABLE chain ADD COLUMN holes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chain ADD COLUMN hole_at INTEGER NOT NULL DEFAULT 0;
