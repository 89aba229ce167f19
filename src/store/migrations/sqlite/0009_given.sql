-- Hash of what the source gave of an item, for monitors that judge a known item again when it changes. Null: none was kept.
ALTER TABLE items ADD COLUMN given BLOB;
