//! What people said, from CSV with a header or JSON lines.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::util::text::one_line;

/// Which fields hold what.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub id: Option<String>,
    /// May be a path such as `human.correct` in JSON lines.
    pub label: String,
    /// Good is bad and the other way round.
    pub invert: bool,
}

/// Labels by item and rater, in [0, 1].
#[derive(Debug, Default, PartialEq)]
pub(super) struct Labels {
    pub items: BTreeMap<String, BTreeMap<String, f64>>,
}

/// Whoever labels alone.
const NOBODY: &str = "";

impl Labels {
    /// # Errors
    /// The line and what is wrong with it.
    pub(super) fn read(path: &Path, fields: &Fields) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let text = text.trim_start_matches('\u{feff}');
        let json = text.trim_start().starts_with('{');
        let read = if json { Self::of_json(text, fields) } else { Self::of_csv(text, fields) };
        read.with_context(|| format!("reading labels from {}", path.display()))
    }

    fn of_json(text: &str, fields: &Fields) -> anyhow::Result<Self> {
        let mut labels = Self::default();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let value: Value = serde_json::from_str(line).with_context(|| format!("line {}", at + 1))?;
            let field = |name: &str| name.split('.').try_fold(&value, |value, key| value.get(key)).filter(|value| !value.is_null());
            let id = match &fields.id {
                Some(name) => field(name),
                None => field("item_id").or_else(|| field("id")),
            };
            let Some(id) = id else { bail!("line {}: there is no `{}`", at + 1, fields.id.as_deref().unwrap_or("item_id")) };
            let Some(label) = field(&fields.label) else { bail!("line {}: there is no `{}`", at + 1, fields.label) };
            let label = match label {
                Value::Bool(yes) => Ok(f64::from(u8::from(*yes))),
                Value::Number(number) => number.as_f64().filter(|x| (0.0..=1.0).contains(x)).ok_or_else(|| format!("{number} is not in [0, 1]")),
                Value::String(word) => parse(word),
                other => Err(format!("{} is no label", one_line(&other.to_string(), 40))),
            };
            labels.add(&plain(id), field("rater").map_or(NOBODY.to_owned(), plain), label, at + 1, fields)?;
        }
        Ok(labels)
    }

    fn of_csv(text: &str, fields: &Fields) -> anyhow::Result<Self> {
        let mut labels = Self::default();
        let mut reader = csv::ReaderBuilder::new().flexible(true).trim(csv::Trim::All).from_reader(text.as_bytes());
        let header = reader.headers().context("line 1")?.clone();
        let column = |name: &str| header.iter().position(|known| known.eq_ignore_ascii_case(name));
        let id = match &fields.id {
            Some(name) => column(name),
            None => column("item_id").or_else(|| column("id")),
        };
        let (Some(id), Some(label)) = (id, column(&fields.label)) else {
            bail!(
                "line 1: the header has no `{}` and `{}`; it has {}",
                fields.id.as_deref().unwrap_or("item_id"),
                fields.label,
                one_line(&header.iter().collect::<Vec<_>>().join(", "), 200)
            );
        };
        let rater = column("rater");
        for record in reader.records() {
            let record = record?;
            let line = record.position().map_or(0, csv::Position::line);
            let (Some(id), Some(word)) = (record.get(id), record.get(label)) else { bail!("line {line}: too few columns") };
            if word.is_empty() {
                continue;
            }
            let rater = rater.and_then(|rater| record.get(rater)).unwrap_or(NOBODY);
            labels.add(id, rater.to_owned(), parse(word), usize::try_from(line).unwrap_or(0), fields)?;
        }
        Ok(labels)
    }

    fn add(&mut self, id: &str, rater: String, label: Result<f64, String>, line: usize, fields: &Fields) -> anyhow::Result<()> {
        let label = label.map_err(|message| anyhow::anyhow!("line {line}: {message}"))?;
        let label = if fields.invert { 1.0 - label } else { label };
        if self.items.entry(id.to_owned()).or_default().insert(rater, label).is_some_and(|before| before.total_cmp(&label).is_ne()) {
            bail!("line {line}: `{}` is labelled twice, and differently; name the raters in a column `rater`", one_line(id, 80));
        }
        Ok(())
    }

    /// The raters, each with a place.
    pub(super) fn raters(&self) -> Vec<&str> {
        let mut raters: Vec<&str> = self.items.values().flat_map(|labels| labels.keys().map(String::as_str)).collect();
        raters.sort_unstable();
        raters.dedup();
        raters
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn parse(word: &str) -> Result<f64, String> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "yes" | "pass" | "passed" | "good" | "correct" => Ok(1.0),
        "false" | "no" | "fail" | "failed" | "bad" | "incorrect" => Ok(0.0),
        number => number
            .parse::<f64>()
            .ok()
            .filter(|x| (0.0..=1.0).contains(x))
            .ok_or_else(|| format!("`{}` is no label; they are pass, fail, true, false, good, bad, or a number in [0, 1]", one_line(word, 40))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields() -> Fields {
        Fields { id: None, label: "label".to_owned(), invert: false }
    }

    fn read(text: &str, fields: &Fields) -> Result<Vec<(String, String, f64)>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let labels = Labels::read(file.path(), fields).map_err(|error| format!("{:#}", error.root_cause()))?;
        Ok(labels.items.into_iter().flat_map(|(id, labels)| labels.into_iter().map(move |(rater, label)| (id.clone(), rater, label))).collect())
    }

    #[test]
    fn csv_and_json_lines_say_the_same() {
        let expected = vec![("a".to_owned(), String::new(), 1.0), ("b".to_owned(), String::new(), 0.0), ("c".to_owned(), String::new(), 0.5)];
        assert_eq!(read("\u{feff}item_id,label\r\na,pass\r\nb,Fail\r\nc,0.5\r\nd,\r\n", &fields()).unwrap(), expected);
        assert_eq!(read("{\"id\":\"a\",\"label\":true}\n{\"item_id\":\"b\",\"label\":\"no\"}\n\n{\"id\":\"c\",\"label\":0.5}\n", &fields()).unwrap(), expected);
        let inverted = Fields { id: None, label: "human.wrong".to_owned(), invert: true };
        assert_eq!(read("{\"id\":1,\"human\":{\"wrong\":false}}\n", &inverted).unwrap(), [("1".to_owned(), String::new(), 1.0)]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert_eq!(
            read("item_id,label\na,perhaps\n", &fields()).unwrap_err(),
            "line 2: `perhaps` is no label; they are pass, fail, true, false, good, bad, or a number in [0, 1]"
        );
        assert_eq!(read("name,label\n", &fields()).unwrap_err(), "line 1: the header has no `item_id` and `label`; it has name, label");
        assert_eq!(
            read("item_id,label\na,1\na,0\n", &fields()).unwrap_err(),
            "line 3: `a` is labelled twice, and differently; name the raters in a column `rater`"
        );
        assert_eq!(read("{\"id\":\"a\"}\n", &fields()).unwrap_err(), "line 1: there is no `label`");
        assert_eq!(read("item_id,label,rater\na,1,x\na,0,y\n", &fields()).unwrap().len(), 2);
    }
}
