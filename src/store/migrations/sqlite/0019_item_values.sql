-- What alerts by value tell an item by: what an expression (`dimension`) of the settings gave when the item was judged. Goes with its item.
CREATE TABLE item_values (
    item      INTEGER NOT NULL,
    dimension TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (item, dimension)
) WITHOUT ROWID;
