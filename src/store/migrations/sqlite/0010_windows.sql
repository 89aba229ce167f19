-- The window that a run was asked for by hand; null: from the watermark to what has settled.
ALTER TABLE runs ADD COLUMN since_us INTEGER;
ALTER TABLE runs ADD COLUMN until_us INTEGER;
-- Whether scores of a waiting item are sent: what the run that drew it was asked for, whichever run judges it.
ALTER TABLE pending ADD COLUMN publish INTEGER NOT NULL DEFAULT 1;
UPDATE pending SET publish = coalesce((SELECT runs.publish FROM items JOIN runs ON runs.id = items.run_id WHERE items.id = pending.item), 1);
-- 1 where an item was judged only because `sampling.always` asked for it: such items say nothing about the rest.
ALTER TABLE items ADD COLUMN chosen INTEGER NOT NULL DEFAULT 0;
