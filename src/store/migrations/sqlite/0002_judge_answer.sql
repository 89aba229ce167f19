-- What a judge's model said where no verdict could be read from it, on one line: for `assayd explain`.
ALTER TABLE scores ADD COLUMN answer TEXT;
