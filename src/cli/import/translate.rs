//! The old file as a whole. Pure: the same tree gives the same monitor, whatever else there is.

use super::{
    metric::{self, Pace},
    needs::{Needs, slug},
    old::{Figure, Section, carried, whole},
    publish,
    report::{Fate, Report},
    source::{self, Around, Source},
    todo,
    yaml::{Map, Yaml},
};
use crate::util::{
    text::one_line,
    yaml::{Fault, Node, Value},
};

/// What came of an old file.
#[derive(Debug)]
pub(super) struct Translation {
    /// The monitor's, as written: it may hold `${NAME}`.
    pub name: String,
    pub monitor: Map,
    pub needs: Needs,
    pub report: Report,
    pub ledger: Ledger,
}

/// Under what its ledger knew an item, and under what ours does (SPEC 6).
#[derive(Debug)]
pub(super) struct Ledger {
    pub old_monitor: String,
    pub old_source: String,
    pub monitor: String,
    pub source: String,
}

const VERSIONS: [&str; 2] = ["1", "1.0"];

/// `file` is the old file as the user names it, `stem` its name without folder and ending.
pub(super) fn translate(tree: &Node, file: &str, stem: &str) -> Result<Translation, Vec<Fault>> {
    let mut report = Report::default();
    let mut needs = Needs::default();
    let top = Section::new(tree, "", &mut report);
    version(&top, &mut report);
    let (old_monitor, name) = name(&top, stem, &mut report);
    let mut monitor = Map::default();
    monitor.comment(&format!("From {} by assayd import.", one_line(file, 200)));
    monitor.set("name", name.as_str());
    monitor.set_some("description", top.text("description", &mut report).map(|text| carried(&text)));
    top.taken("description", "description", &mut report);

    let evaluation = top.section("evaluation", &mut report);
    let of_source = top.section("source", &mut report);
    if !of_source.is_there() {
        report.fault(&top.place("source"), "`source` is missing");
        return Err(report.faults);
    }
    environment(&top, &of_source, &mut monitor, &mut report);
    let mut labels = Map::default();
    source::beside(&of_source, &mut labels, &mut report);
    self::labels(&evaluation, &mut labels, &mut report);
    if !labels.is_empty() {
        monitor.set("labels", labels);
    }
    let (schedule, every_minutes) = schedule(&top, &mut report);
    monitor.set("schedule", schedule);

    let Some(source) = source::translate(&of_source, &Around { every_minutes }, &mut needs, &mut report) else { return Err(report.faults) };
    let Source { block, old_key, key, templates } = source;
    monitor.set("source", block);
    extract(&of_source, templates, &mut monitor, &mut report);
    of_source.finish(&mut report);
    sampling(&top, &of_source, &mut monitor, &mut report);

    let (concurrency, pace) = pace(&evaluation, &mut report);
    let thresholds = evaluation.section("thresholds", &mut report);
    let (metrics, names) = metric::translate(&top.section("metrics_config", &mut report), &thresholds, &pace, &mut needs, &mut report);
    monitor.set("metrics", metrics);
    if let Some(concurrency) = concurrency {
        let mut block = Map::default();
        block.set("concurrency", concurrency);
        monitor.set("evaluation", block);
    }
    evaluation.finish(&mut report);
    let publishing = top.section("publishing", &mut report);
    let sinks = publish::translate(&publishing, key.kind, &names, &mut needs, &mut report);
    publishing.finish(&mut report);
    if !sinks.is_empty() {
        monitor.set("publish", sinks);
    }
    scored_store(&top, &old_key, &old_monitor, &mut report);
    top.finish(&mut report);
    if !report.faults.is_empty() {
        report.faults.sort();
        return Err(report.faults);
    }
    let ledger = Ledger { source: format!("{}:{}", key.kind, key.name.as_deref().unwrap_or(&name)), monitor: name.clone(), old_source: old_key, old_monitor };
    Ok(Translation { name, monitor, needs, report, ledger })
}

fn version(top: &Section, report: &mut Report) {
    match top.text("version", report) {
        Some(version) if VERSIONS.contains(&version.as_str()) => report.say(Fate::Taken, &top.place("version"), "read as 1.0"),
        Some(version) => report.fault(&top.place("version"), format!("version `{}` of the older tool's files is not known: 1.0 is", one_line(&version, 20))),
        None if top.has("version") => {}
        None => report.say(Fate::Decide, &top.place("version"), "no `version`: read as 1.0"),
    }
}

/// The name there, and the name here.
fn name(top: &Section, stem: &str, report: &mut Report) -> (String, String) {
    let Some(old) = top.text("name", report) else {
        let name = fit(stem);
        report.say(Fate::Decide, &top.place("name"), format!("no `name`: `{name}` is taken, from the file's"));
        return (stem.to_owned(), name);
    };
    let place = top.place("name");
    let name = if old.contains("${") { carried(&old) } else { fit(&old) };
    if name == old {
        report.say(Fate::Taken, &place, "name");
    } else if old.contains("${") {
        report.say(Fate::Taken, &place, "name, where what is filled in has to be of a-z, 0-9, `.`, `_` and `-`");
    } else {
        report.say(Fate::Changed, &place, format!("`{name}`: a name is of a-z, 0-9, `.`, `_` and `-`"));
    }
    (old, name)
}

fn fit(name: &str) -> String {
    let name = slug(name);
    if name.is_empty() { "imported".to_owned() } else { name }
}

fn environment(top: &Section, source: &Section, monitor: &mut Map, report: &mut Report) {
    let (of, other) = if top.has("environment") { (top, source) } else { (source, top) };
    monitor.set_some("environment", of.text("environment", report).map(|text| carried(&text)));
    of.taken("environment", "environment: given to scores whose trace names none", report);
    if other.has("environment") {
        report.say(Fate::Contradiction, &other.place("environment"), "stands beside the monitor's own `environment`; left out");
    }
}

/// The schedule, and the minutes between two runs where they are known.
fn schedule(top: &Section, report: &mut Report) -> (Map, Option<f64>) {
    let old = top.section("schedule", report);
    let mut schedule = Map::default();
    let mut minutes = None;
    if old.has("interval_minutes") {
        let interval = old.count("interval_minutes", report);
        if let Some(Figure::Known(n)) = interval {
            minutes = Some(n);
        }
        schedule.set_some("interval_minutes", interval);
        report.say(Fate::Changed, &old.place("interval_minutes"), "slots are multiples of the interval on the clock, not counted from when the process began");
        if old.has("cron") {
            report.say(Fate::Contradiction, &old.place("cron"), "stands beside `interval_minutes`; left out");
        }
    } else if let Some(cron) = old.text("cron", report) {
        let weekday = cron.split_whitespace().nth(4).unwrap_or_default();
        if weekday.contains(|c: char| c.is_ascii_digit()) && !weekday.starts_with("*/") {
            report.say(
                Fate::Decide,
                &old.place("cron"),
                "check the day of the week: Python's scheduler counts from Monday = 0, cron and assayd from Sunday = 0; a name such as MON leaves no doubt",
            );
        }
        schedule.set("cron", carried(&cron));
        old.taken("cron", "schedule.cron, in UTC unless `timezone` says otherwise", report);
    } else if !old.has("cron") {
        report.say(Fate::Decide, &old.here(), "nothing says how often it ran: every hour is taken");
        schedule.set("every", "1h");
        minutes = Some(60.0);
    }
    old.finish(report);
    (schedule, minutes)
}

/// The work of a Python extractor is the user's to say in templates.
fn extract(source: &Section, templates: &[(&str, &str)], monitor: &mut Map, report: &mut Report) {
    let mut python = Vec::new();
    for key in ["extractor", "prompt_patterns"] {
        if let Some(path) = source.text(key, report) {
            let shown = format!("`{}`", one_line(&path, 120));
            report.say(
                Fate::Decide,
                &source.place(key),
                format!("{shown} is Python: a commented `extract` block waits for templates that do its work; until then the defaults hold"),
            );
            python.push(shown);
        }
    }
    if python.is_empty() {
        return;
    }
    let mut block = Map::default();
    templates.iter().for_each(|(key, template)| block.set(key, *template));
    if source.has("prompt_patterns") {
        let (mut step, mut patterns) = (Map::default(), Map::default());
        step.set("input", "Question: (?P<question>.*)");
        patterns.set("retrieve", step);
        block.set("patterns", patterns);
    }
    monitor.set_off(&todo(include_str!("todo/extract.txt"), &python.join(" and ")), "extract", block);
}

const STRATEGIES: [&str; 4] = ["all", "random", "most_recent", "oldest"];

/// What a run drew where its file does not say.
const UNSAID_N: u64 = 10;

fn sampling(top: &Section, source: &Section, monitor: &mut Map, report: &mut Report) {
    let old = top.section("sampling", report);
    if !old.is_there() {
        return;
    }
    let mut sampling = Map::default();
    let strategy = old.text("strategy", report).unwrap_or_else(|| "all".to_owned());
    if !STRATEGIES.contains(&strategy.as_str()) {
        let hint = crate::util::text::nearest(&strategy, STRATEGIES).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default();
        report.fault(&old.place("strategy"), format!("`{}` is no strategy{hint}: there were {}", one_line(&strategy, 40), STRATEGIES.join(", ")));
    }
    sampling.set("strategy", strategy.as_str());
    let n = old.count("n", report);
    if strategy == "all" {
        for key in ["n", "seed"] {
            if old.has(key) {
                report.say(Fate::Contradiction, &old.place(key), "goes with no strategy that takes all; left out");
            }
        }
    } else {
        if n.is_none() && !old.has("n") {
            report.say(Fate::Decide, &old.here(), format!("no `n`: {UNSAID_N} items a run are drawn"));
        }
        if let (Some(Figure::Known(n)), Some(Figure::Known(limit))) = (&n, source.figure("limit", &mut Report::default()))
            && *n > limit
        {
            report.say(Fate::Contradiction, &source.place("limit"), "less than `sampling.n`: so many could never be drawn");
        }
        sampling.set("n", n.map_or_else(|| Yaml::from(UNSAID_N), Yaml::from));
        let seed = old.figure("seed", report);
        if let Some(Figure::Known(seed)) = &seed
            && (*seed < 0.0 || seed.fract() != 0.0)
        {
            report.fault(&old.place("seed"), "expected a whole number");
        }
        if seed.is_some() {
            report.say(Fate::Changed, &old.place("seed"), "the draw is repeatable here too, but it is another draw");
        }
        sampling.set_some("seed", seed);
        old.taken("n", "sampling.n", report);
    }
    old.taken("strategy", "sampling.strategy", report);
    old.finish(report);
    monitor.set("sampling", sampling);
}

/// Metadata of every result there: labels here.
fn labels(evaluation: &Section, labels: &mut Map, report: &mut Report) {
    let metadata = evaluation.section("metadata", report);
    for (key, at, value) in metadata.entries() {
        let place = super::report::Place { at: at.clone(), key: format!("evaluation.metadata.{key}") };
        match &value.value {
            Value::Seq(_) | Value::Map(_) | Value::Null => report.say(Fate::Decide, &place, "labels are texts: this one is not, and is left out"),
            _ if labels.has(key) => {
                labels.set(key, whole(value));
                report.say(Fate::Contradiction, &place, format!("stands beside `source.{}`, which is a label too: this one is taken", one_line(key, 60)));
            }
            _ => {
                labels.set(key, whole(value));
                report.say(Fate::Changed, &place, "a label of the monitor");
            }
        }
    }
}

/// How many items at a time, and what the pauses between calls come to.
fn pace(old: &Section, report: &mut Report) -> (Option<Figure>, Pace) {
    let concurrency = old.count("max_concurrent", report);
    old.taken("max_concurrent", "evaluation.concurrency: items judged at the same time", report);
    let mut pace = Pace { rpm: None };
    match old.figure("throttle_delay", report) {
        Some(Figure::Known(delay)) if delay > 0.0 => {
            let lanes = if let Some(Figure::Known(n)) = concurrency { n } else { 1.0 };
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and a million")]
            let rpm = (lanes * 60.0 / delay).floor().clamp(1.0, 1_000_000.0) as u64;
            pace.rpm = Some(rpm);
            report.say(
                Fate::Changed,
                &old.place("throttle_delay"),
                format!("a pause after each call: `limits: {{ rpm: {rpm} }}` of the profile, over all monitors"),
            );
        }
        Some(Figure::Known(delay)) if delay < 0.0 => report.fault(&old.place("throttle_delay"), "expected seconds, at least 0"),
        Some(Figure::Variable(_)) => report.say(Fate::Decide, &old.place("throttle_delay"), "a pause after each call: give the profile `limits: { rpm: .. }`"),
        _ => {}
    }
    old.drop("show_progress", "`assayd once` shows it on a terminal", report);
    old.drop("description", "the monitor has a `description`", report);
    old.drop("trace_granularity", "the calls of a judge are traces where a sink says `trace_calls`", report);
    old.drop("flush_per_metric", "what is published goes through an outbox", report);
    for (key, counterpart) in [
        ("cache", "answers are kept where a profile says `cache: { ttl: 24h }`"),
        ("errors", "a failed judgement is an outcome with a reason, retried, never a score"),
        ("scoring_strategy", "a weighted mean of metrics is one more metric, of type `composite`"),
        ("scoring_key_mapping", "what a metric reads is said in `extract`"),
        ("model", "a weighted mean of metrics is one more metric, of type `composite`"),
        ("weights", "a weighted mean of metrics is one more metric, of type `composite`"),
    ] {
        if old.has(key) {
            report.say(Fate::Decide, &old.place(key), format!("left out: {counterpart}"));
        }
    }
    (concurrency, pace)
}

fn scored_store(top: &Section, old_source: &str, old_monitor: &str, report: &mut Report) {
    let old = top.section("scored_store", report);
    let kind = old.text("type", report);
    let path = old.text("file_path", report);
    let hint = match kind.as_deref() {
        Some("csv") => {
            format!("give it to `--scored-items {}`, and nothing is judged again", one_line(path.as_deref().unwrap_or("data/scored_items.csv"), 200))
        }
        Some("db" | "database") => {
            let text = |text: &str| one_line(text, 100).replace('\'', "''");
            let (kind, name) = old_source.split_once(':').unwrap_or((old_source, ""));
            format!(
                "its items are in a table: `psql -c \"\\copy (SELECT DISTINCT '{}' AS source_key, '{}' AS monitor_key, dataset_id AS item_id FROM evaluation_dataset WHERE source_type = '{}' AND source_name = '{}') TO 'scored_items.csv' CSV HEADER\"`, then `--scored-items scored_items.csv`",
                text(old_source),
                text(old_monitor),
                text(kind),
                text(name)
            )
        }
        _ => "without a store every window was scored anew; here each item is decided once".to_owned(),
    };
    // Its address is that of the database above, or a secret.
    let _ = old.has("connection_string");
    let fate = if matches!(kind.as_deref(), Some("csv" | "db" | "database")) { Fate::Decide } else { Fate::Contradiction };
    report.say(fate, &top.place("scored_store"), hint);
    old.finish(report);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::util::yaml::parse;

    fn translated(old: &str) -> Translation {
        let tree = parse("old.yaml", old.as_bytes()).unwrap().remove(0);
        translate(&tree, "old.yaml", "old").unwrap_or_else(|faults| panic!("{faults:?}"))
    }

    const OLD: [&str; 3] = [
        include_str!("../../../tests/fixtures/import/langfuse.yaml"),
        include_str!("../../../tests/fixtures/import/neon.yaml"),
        include_str!("../../../tests/fixtures/import/slack_neon_join.yaml"),
    ];

    /// Keys of which nothing is said, neither of themselves nor of each of their parts.
    fn silent(node: &Node, path: &str, report: &Report) -> Vec<String> {
        match node.as_map() {
            _ if !path.is_empty() && report.speaks_of(path) => Vec::new(),
            Some(map) => {
                map.iter().flat_map(|(key, _, value)| silent(value, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, report)).collect()
            }
            None => vec![path.to_owned()],
        }
    }

    #[test]
    fn of_every_key_it_is_told_what_became_of_it() {
        for old in OLD {
            let tree = parse("old.yaml", old.as_bytes()).unwrap().remove(0);
            assert_eq!(silent(&tree, "", &translated(old).report), Vec::<String>::new());
        }
    }

    #[test]
    fn an_unknown_key_is_told_wherever_it_stands() {
        for (old, path) in [
            ("name: x\n", "strange"),
            ("  type: langfuse\n", "source.strange"),
            ("  interval_minutes: 60\n", "schedule.strange"),
            ("  strategy: random\n", "sampling.strange"),
            ("    class: \"answer_relevancy\"\n", "metrics_config.Relevancy.strange"),
            ("  max_concurrent: 4\n", "evaluation.strange"),
            ("  push_to_db: false\n", "publishing.strange"),
            ("  type: csv\n", "scored_store.strange"),
        ] {
            let whole = OLD[0].replace("name: Support_Answers\n", "name: x\n");
            let indent = old.len() - old.trim_start().len();
            assert!(whole.contains(old), "{old}");
            let whole = whole.replacen(old, &format!("{old}{}strange: 1\n", " ".repeat(indent)), 1);
            assert!(translated(&whole).report.speaks_of(path), "{path}");
        }
    }

    #[test]
    fn the_ledgers_keys_are_those_of_both_tools() {
        let keys = OLD.map(|old| {
            let Ledger { old_source, old_monitor, source, monitor } = translated(old).ledger;
            [old_source, old_monitor, source, monitor].join(" ")
        });
        assert_eq!(
            keys,
            [
                "langfuse:support-bot Support_Answers langfuse:support-bot support_answers",
                "neon:cases cases sql:cases cases",
                "slack_neon_join:support support_threads join:support support_threads"
            ]
        );
    }

    #[test]
    fn what_a_variable_holds_is_left_to_the_run() {
        let old = OLD[0].replace("days_back: 1", "days_back: \"${DAYS:-3}\"").replace("limit: 100", "limit: ${LIMIT}").replace("\"prod\"", "\"a$$b\"");
        let monitor = translated(&old).monitor.render();
        for line in ["  lookback: \"${DAYS:-3}d\"\n", "  limit: \"${LIMIT}\"\n", "  tags: [\"a$$$$b\"]\n"] {
            assert!(monitor.contains(line), "{line}\n{monitor}");
        }
    }
}
