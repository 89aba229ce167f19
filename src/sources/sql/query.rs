//! A user's query: where its parameters stand. Only what a database would take for something else is looked at (quotes,
//! comments, casts); the rest is the database's to understand.

use crate::util::text;

/// Whose SQL it is: they differ in what is quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parameter {
    Since,
    Until,
    Limit,
}

const NAMES: [(&str, Parameter); 3] = [("since", Parameter::Since), ("until", Parameter::Until), ("limit", Parameter::Limit)];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Parameter(Parameter),
}

/// One `SELECT` with its parameters found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    dialect: Dialect,
    parts: Vec<Part>,
    /// It takes `:limit`, and so orders its rows itself.
    pub limited: bool,
}

impl Query {
    /// # Errors
    /// A sentence that says what a query needs.
    pub fn parse(sql: &str, dialect: Dialect) -> Result<Self, String> {
        let scanned = Scanner::new(dialect, sql).scan()?;
        let uses = |parameter| scanned.uses.iter().filter(move |used| used.parameter == parameter);
        let word = |group: usize, word: &str| scanned.words.iter().any(|(within, known)| *within == group && known == word);
        let cut = |group: usize| word(group, "limit") || word(group, "fetch");
        match scanned.words.first() {
            Some((_, first)) if ["select", "with", "values"].contains(&first.as_str()) => {}
            _ => return Err("a query is a `SELECT`, or a `WITH` that ends in one".to_owned()),
        }
        for (name, parameter) in NAMES.iter().take(2) {
            if uses(*parameter).next().is_none() {
                return Err(format!(
                    "the query does not use `:{name}`: every run asks for one window of time, such as `WHERE created_at >= :since AND created_at < :until`"
                ));
            }
        }
        let limited = uses(Parameter::Limit).next().is_some();
        // A page with fewer rows than were asked for is the window's last one: another number of rows would end it early.
        if uses(Parameter::Limit).any(|used| !used.groups.is_empty() || !matches!(used.behind.as_deref(), Some("limit" | "first" | "next"))) {
            return Err(
                "`:limit` counts the rows that the query gives: it has to be the limit of the whole query (`... LIMIT :limit` at its end, outside of all \
                 parentheses), or rows would be skipped"
                    .to_owned(),
            );
        }
        if limited && !word(WHOLE, "order") {
            return Err("a query with `:limit` has to order its rows by time (`ORDER BY created_at LIMIT :limit`), or rows would be skipped".to_owned());
        }
        if !limited && cut(WHOLE) {
            return Err("with a fixed number of rows those beyond it would be skipped: write `LIMIT :limit`, or leave it out".to_owned());
        }
        if let Some(used) = scanned.uses.iter().find(|used| used.groups.iter().any(|group| cut(*group))) {
            let name = NAMES.iter().find(|(_, known)| *known == used.parameter).map_or("since", |(name, _)| name);
            return Err(format!(
                "the part of the query in parentheses that uses `:{name}` has a number of rows of its own, and those beyond it would be skipped: leave that out"
            ));
        }
        Ok(Self { dialect, parts: scanned.parts, limited })
    }

    /// The query as a part of another one: `$1` is the start of the window, `$2` its end, `$3` the number of rows.
    #[must_use]
    pub fn bound(&self) -> String {
        let parts = self.parts.iter().map(|part| match (part, self.dialect) {
            (Part::Text(text), _) => text.as_str(),
            (Part::Parameter(Parameter::Since), Dialect::Postgres) => "($1::timestamptz)",
            (Part::Parameter(Parameter::Until), Dialect::Postgres) => "($2::timestamptz)",
            (Part::Parameter(Parameter::Limit), Dialect::Postgres) => "($3::bigint)",
            (Part::Parameter(Parameter::Since), Dialect::Sqlite) => "?1",
            (Part::Parameter(Parameter::Until), Dialect::Sqlite) => "?2",
            (Part::Parameter(Parameter::Limit), Dialect::Sqlite) => "?3",
        });
        parts.collect()
    }
}

/// What a name is inside double quotes.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What stands in no parentheses.
const WHOLE: usize = 0;

/// Where a parameter stands.
struct Use {
    parameter: Parameter,
    /// The parentheses around it, from outside in.
    groups: Vec<usize>,
    /// The word that it stands behind.
    behind: Option<String>,
}

struct Scanner<'a> {
    dialect: Dialect,
    rest: &'a str,
    /// Read since the last parameter.
    text: String,
    parts: Vec<Part>,
    /// Parentheses so far, and those that are open, by their numbers from 1.
    groups: usize,
    open: Vec<usize>,
    /// Bare words in lower case, and the parentheses they stand in.
    words: Vec<(usize, String)>,
    uses: Vec<Use>,
    /// A `;` was read: nothing may follow.
    ended: bool,
}

fn begins_name(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}

fn in_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn name_len(text: &str) -> usize {
    text.find(|c| !in_name(c)).unwrap_or(text.len())
}

impl<'a> Scanner<'a> {
    fn new(dialect: Dialect, sql: &'a str) -> Self {
        Self { dialect, rest: sql, text: String::new(), parts: Vec::new(), groups: WHOLE, open: Vec::new(), words: Vec::new(), uses: Vec::new(), ended: false }
    }

    fn scan(mut self) -> Result<Self, String> {
        while let Some(c) = self.rest.chars().next() {
            if let Some(len) = self.blank()? {
                self.keep(len);
                continue;
            }
            if self.ended {
                return Err("a query is one statement: nothing may follow its `;`".to_owned());
            }
            let sqlite = self.dialect == Dialect::Sqlite;
            let next = self.rest[c.len_utf8()..].chars().next();
            match c {
                '\'' | '"' => self.quote(c, false)?,
                '`' if sqlite => self.quote('`', false)?,
                '[' if sqlite => {
                    let len = self.rest.find(']').ok_or("a `[` has no end")? + 1;
                    self.keep(len);
                }
                '$' if !sqlite && !next.is_some_and(|c| c.is_ascii_digit()) => self.dollar()?,
                '$' | '?' | '@' if sqlite || c == '$' => return Err(format!("`{c}` is no parameter here; they are `:since`, `:until` and `:limit`")),
                ':' if next == Some(':') => self.keep(2),
                ':' if next.is_some_and(begins_name) => self.parameter()?,
                ';' => {
                    self.ended = true;
                    self.rest = &self.rest[1..];
                }
                c if begins_name(c) => self.word()?,
                // With what belongs to it: `1e5` is no word.
                c if c.is_ascii_digit() => self.keep(name_len(self.rest)),
                c => {
                    match c {
                        '(' => {
                            self.groups += 1;
                            self.open.push(self.groups);
                        }
                        ')' => {
                            self.open.pop().ok_or("a `)` closes nothing")?;
                        }
                        _ => {}
                    }
                    self.keep(c.len_utf8());
                }
            }
        }
        if !self.open.is_empty() {
            return Err("a `(` is not closed".to_owned());
        }
        if !self.text.is_empty() {
            self.parts.push(Part::Text(std::mem::take(&mut self.text)));
        }
        Ok(self)
    }

    fn keep(&mut self, len: usize) {
        let (kept, rest) = self.rest.split_at(len);
        self.text.push_str(kept);
        self.rest = rest;
    }

    /// Length of the space or comment that stands here.
    fn blank(&self) -> Result<Option<usize>, String> {
        let rest = self.rest;
        if rest.starts_with("--") {
            return Ok(Some(rest.find('\n').map_or(rest.len(), |at| at + 1)));
        }
        if !rest.starts_with("/*") {
            return Ok(rest.chars().next().filter(|c| c.is_whitespace()).map(char::len_utf8));
        }
        let (mut depth, mut at) = (0_usize, 0);
        while at < rest.len() {
            match rest.as_bytes().get(at..at + 2) {
                // Comments nest in Postgres alone.
                Some(b"/*") if depth == 0 || self.dialect == Dialect::Postgres => (depth, at) = (depth + 1, at + 2),
                Some(b"*/") => {
                    (depth, at) = (depth - 1, at + 2);
                    if depth == 0 {
                        return Ok(Some(at));
                    }
                }
                _ => at += 1,
            }
        }
        Err("a comment `/*` has no end".to_owned())
    }

    /// Text between two of `mark`; a doubled one stands for itself, and so does one behind a backslash where `escapes`.
    fn quote(&mut self, mark: char, escapes: bool) -> Result<(), String> {
        let bytes = self.rest.as_bytes();
        let mut at = 1;
        loop {
            match bytes.get(at) {
                None => return Err(format!("a {mark} has no end")),
                Some(b'\\') if escapes => at += 2,
                Some(byte) if char::from(*byte) == mark => {
                    if bytes.get(at + 1) != Some(byte) {
                        break;
                    }
                    at += 2;
                }
                Some(_) => at += 1,
            }
        }
        self.keep(at + 1);
        Ok(())
    }

    /// `$$...$$` or `$tag$...$tag$`.
    fn dollar(&mut self) -> Result<(), String> {
        let inner = name_len(&self.rest[1..]);
        let mark = self.rest.get(..inner + 2).filter(|mark| mark.ends_with('$')).ok_or("a `$` begins nothing that is known here")?;
        let len = self.rest[mark.len()..].find(mark).ok_or_else(|| format!("a {mark} has no end"))? + 2 * mark.len();
        self.keep(len);
        Ok(())
    }

    fn parameter(&mut self) -> Result<(), String> {
        let name = &self.rest[1..=name_len(&self.rest[1..])];
        let Some((_, parameter)) = NAMES.iter().find(|(known, _)| *known == name) else {
            let hint = text::nearest(name, NAMES.map(|(known, _)| known)).map(|near| format!("did you mean `:{near}`? ")).unwrap_or_default();
            return Err(format!("there is no parameter `:{}`: {hint}known are `:since`, `:until` and `:limit`", text::one_line(name, 40)));
        };
        if !self.text.is_empty() {
            self.parts.push(Part::Text(std::mem::take(&mut self.text)));
        }
        self.parts.push(Part::Parameter(*parameter));
        self.uses.push(Use { parameter: *parameter, groups: self.open.clone(), behind: self.words.last().map(|(_, word)| word.clone()) });
        self.rest = &self.rest[1 + name.len()..];
        Ok(())
    }

    fn word(&mut self) -> Result<(), String> {
        // A `$` may stand inside a name, and begins no quote there.
        let len = self.rest.find(|c| !in_name(c) && c != '$').unwrap_or(self.rest.len());
        let word = self.rest[..len].to_lowercase();
        self.keep(len);
        if word == "e" && self.dialect == Dialect::Postgres && self.rest.starts_with('\'') {
            return self.quote('\'', true);
        }
        self.words.push((self.open.last().copied().unwrap_or(WHOLE), word));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: &str = "SELECT * FROM t WHERE at >= :since AND at < :until";

    fn parse(sql: &str) -> Result<Query, String> {
        Query::parse(sql, Dialect::Postgres)
    }

    /// As it was written, without the `;`.
    fn written(query: &Query) -> String {
        let name = |parameter: &Parameter| NAMES.iter().find(|(_, known)| known == parameter).unwrap().0;
        query.parts.iter().map(|part| if let Part::Parameter(parameter) = part { format!(":{}", name(parameter)) } else { text_of(part) }).collect()
    }

    fn text_of(part: &Part) -> String {
        if let Part::Text(text) = part { text.clone() } else { String::new() }
    }

    #[test]
    fn parameters_become_bound_ones() {
        let query = parse("SELECT a::text, 'x' FROM t WHERE at >= :since::date AND at<:until ORDER BY at LIMIT :limit; -- done").unwrap();
        assert!(query.limited);
        assert_eq!(
            query.bound(),
            "SELECT a::text, 'x' FROM t WHERE at >= ($1::timestamptz)::date AND at<($2::timestamptz) ORDER BY at LIMIT ($3::bigint) -- done"
        );
        let query = Query::parse("SELECT [a:b], `:c` FROM t WHERE at >= unixepoch(:since) AND at < unixepoch(:until)", Dialect::Sqlite).unwrap();
        assert_eq!(query.bound(), "SELECT [a:b], `:c` FROM t WHERE at >= unixepoch(?1) AND at < unixepoch(?2)");
    }

    #[test]
    fn what_is_missing_or_wrong_is_said() {
        for (sql, word) in [
            ("SELECT * FROM t", ":since"),
            ("SELECT * FROM t WHERE at >= :since", ":until"),
            ("SELECT * FROM t WHERE at >= :sinse AND at < :until", "did you mean `:since`"),
            ("SELECT * FROM t WHERE at >= ':since' AND at < \":until\" /* :since */", ":since"),
            ("SELECT * FROM t WHERE at >= $1 AND at < $2", ":since"),
            ("SELECT * FROM t WHERE at >= :since AND at < :until LIMIT :limit", "ORDER BY"),
            ("SELECT * FROM t WHERE at >= :since AND at < :until ORDER BY at LIMIT 50", ":limit"),
            // 500 rows inside are fewer outside, and a page that is not full is taken for the last one.
            ("WITH t AS (SELECT * FROM t WHERE at >= :since AND at < :until ORDER BY at LIMIT :limit) SELECT * FROM t JOIN u USING (id)", "whole query"),
            ("SELECT * FROM (SELECT * FROM t WHERE at >= :since AND at < :until ORDER BY at LIMIT :limit) AS q JOIN u USING (id) ORDER BY at", "whole query"),
            ("SELECT * FROM t WHERE at >= :since AND at < :until AND n < :limit ORDER BY at", "whole query"),
            ("SELECT *, row_number() OVER (ORDER BY at) FROM t WHERE at >= :since AND at < :until LIMIT :limit", "order its rows"),
            ("SELECT * FROM (SELECT * FROM t WHERE at >= :since AND at < :until ORDER BY at LIMIT 100) AS q", "in parentheses"),
            ("SELECT * FROM (SELECT * FROM t WHERE (at >= :since) AND at < :until FETCH FIRST 9 ROWS ONLY) AS q ORDER BY at LIMIT :limit", "in parentheses"),
            ("WITH t AS (SELECT * FROM (SELECT * FROM t WHERE at >= :since) AS q LIMIT 7) SELECT * FROM t WHERE at < :until", "uses `:since`"),
            ("SELECT * FROM t WHERE at >= :since AND at < :until; DROP TABLE t", "one statement"),
            ("DELETE FROM t WHERE at >= :since AND at < :until", "SELECT"),
            ("SELECT 'x FROM t WHERE at >= :since AND at < :until", "no end"),
            ("SELECT (1 FROM t WHERE at >= :since AND at < :until", "not closed"),
            ("SELECT 1) FROM t WHERE at >= :since AND at < :until", "closes nothing"),
            ("", "SELECT"),
        ] {
            let error = parse(sql).unwrap_err();
            assert!(error.contains(word), "{sql}: {error}");
        }
        assert!(Query::parse("SELECT ? FROM t WHERE at >= :since AND at < :until", Dialect::Sqlite).is_err());
        assert!(parse("SELECT a ? 'b', a @> '{}' FROM t WHERE at >= :since AND at < :until").is_ok(), "operators of Postgres");
        assert!(parse("SELECT (SELECT x FROM u ORDER BY x LIMIT 1) FROM t WHERE at >= :since AND at < :until").is_ok());
        assert!(
            parse("WITH u AS (SELECT * FROM u LIMIT 5) SELECT * FROM t WHERE (at >= :since AND at < :until) ORDER BY at FETCH FIRST :limit ROWS ONLY").is_ok()
        );
        assert!(parse(r"SELECT E'\':x' FROM t WHERE at >= :since AND at < :until").is_ok());
    }

    proptest! {
        #[test]
        fn what_is_quoted_or_commented_is_no_parameter(inner in "[a-z:;'\"$()\\\\ -]{0,24}") {
            let doubled = |mark: char| inner.replace(mark, &format!("{mark}{mark}"));
            for hidden in [
                format!("'{}'", doubled('\'')),
                format!("\"{}\"", doubled('"')),
                format!("$tag${inner}$tag$"),
                format!("/* {inner} */ 1"),
                format!("1 -- {inner}\n"),
                format!("E'{}'", inner.replace('\\', "\\\\").replace('\'', "\\'")),
            ] {
                let sql = WINDOW.replace('*', &hidden);
                let query = parse(&sql);
                prop_assert!(query.is_ok(), "{sql}: {query:?}");
                let query = query.unwrap();
                prop_assert_eq!(query.parts.iter().filter(|part| matches!(part, Part::Parameter(_))).count(), 2);
                prop_assert_eq!(written(&query), sql);
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic_and_kept(text in "\\PC{0,40}") {
            for dialect in [Dialect::Postgres, Dialect::Sqlite] {
                let sql = WINDOW.replace('*', &text);
                if let Ok(query) = Query::parse(&sql, dialect) {
                    prop_assert_eq!(written(&query).replace(';', ""), sql.replace(';', ""));
                }
            }
        }

        #[test]
        fn a_quoted_name_is_one_name(name in "\\PC{0,20}") {
            let sql = WINDOW.replace('*', &quoted(&name));
            prop_assert!(parse(&sql).is_ok());
        }
    }
}
