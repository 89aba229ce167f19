//! `publishing:` of the older tool.

use super::{
    metric::Names,
    needs::Needs,
    old::{Section, carried, carried_all, whole},
    report::{Fate, Report},
    sql::connection_string,
    yaml::{List, Map, Yaml},
};
use crate::util::text::one_line;

/// Rows of one statement.
const MOST_ROWS: u32 = 10_000;

/// `source` is the type of our source.
pub(super) fn translate(old: &Section, source: &str, names: &Names, needs: &mut Needs, report: &mut Report) -> List {
    let mut sinks = List::default();
    let experiment = old.section("experiment", report);
    let database = old.section("database", report);
    let wants_scores = old.is_set("push_to_langfuse", false, report);
    // There, an experiment that was not switched off was on.
    let wants_experiment = experiment.is_there() && experiment.is_set("enabled", true, report);
    let on_traces = experiment.is_set("score_on_runtime_traces", false, report);
    if wants_scores || wants_experiment {
        sinks.push(langfuse(old, &experiment, wants_scores || on_traces, wants_experiment, names, needs, report));
    } else {
        for key in ["trace_experiment", "experiment"] {
            old.drop(key, "nothing was published to Langfuse there", report);
        }
        // So that its keys count as known.
        let _ = langfuse(old, &experiment, false, false, names, &mut Needs::default(), &mut Report::default());
    }
    old.taken("push_to_langfuse", "publish, type langfuse: scores on traces", report);
    if wants_scores && source != "langfuse" {
        report.say(
            Fate::Decide,
            &old.place("push_to_langfuse"),
            format!("a score hangs on the Langfuse trace whose id is the item's; items of `{source}` have ids of their own: keep `scores: true` only if those are traces"),
        );
    }
    if wants_scores && wants_experiment {
        report.say(
            Fate::Contradiction,
            &old.place("push_to_langfuse"),
            "the experiment excluded it: with both set, scores were never written back to the traces. Here both happen",
        );
    }
    if old.is_set("push_to_db", false, report) {
        sinks.push(postgres(&database, needs, report));
        report.say(Fate::Taken, &old.place("push_to_db"), "publish, type postgres: the same tables and columns; `assayd postgres init` makes what is missing");
    } else {
        // As above.
        old.taken("push_to_db", "publish: no sink of type postgres", report);
        old.drop("database", "switched off by `push_to_db`", report);
        let _ = postgres(&database, &mut Needs::default(), &mut Report::default());
    }
    experiment.finish(report);
    database.finish(report);
    sinks
}

fn langfuse(old: &Section, experiment: &Section, scores: bool, with_experiment: bool, names: &Names, needs: &mut Needs, report: &mut Report) -> Map {
    needs.langfuse();
    let mut sink = Map::default();
    sink.set("type", "langfuse");
    sink.set("scores", scores);
    let mut block = Map::default();
    match experiment.text("dataset_name", report) {
        Some(dataset) => block.set("dataset", carried(&dataset)),
        None if with_experiment => report.fault(&experiment.place("dataset_name"), "an experiment needs the name of its dataset"),
        None => {}
    }
    block.set_some("run_name", experiment.text("run_name", report).map(|name| carried(&name)));
    if let Some(node) = experiment.get("run_metadata") {
        block.set("metadata", whole(node));
    }
    if let Some(tags) = experiment.texts("tags", report) {
        block.set("tags", carried_all(tags));
    }
    for (key, target) in [("dataset_name", "dataset"), ("run_name", "run_name"), ("run_metadata", "metadata"), ("tags", "tags")] {
        if with_experiment {
            experiment.taken(key, &format!("publish, type langfuse: experiment.{target}"), report);
        }
    }
    if with_experiment {
        sink.set("experiment", block);
        experiment.taken("enabled", "publish, type langfuse: experiment", report);
    } else if experiment.is_there() {
        report.say(Fate::Changed, &experiment.here(), "switched off there, and so left out here");
    }
    experiment.drop("flush", "what is published goes through an outbox", report);
    if experiment.has("link_to_traces") {
        report.say(Fate::Changed, &experiment.place("link_to_traces"), "an experiment always links to its traces");
    }
    if experiment.has("score_on_runtime_traces") {
        report.say(Fate::Taken, &experiment.place("score_on_runtime_traces"), "publish, type langfuse: scores");
    }
    if old.is_set("trace_experiment", false, report) {
        sink.set("trace_calls", true);
    }
    old.taken("trace_experiment", "publish, type langfuse: trace_calls", report);
    let (of, key) = if old.has("metric_names") { (old, "metric_names") } else { (experiment, "metrics") };
    if let Some(named) = of.texts(key, report).filter(|named| !named.is_empty()) {
        of.taken(key, "publish, type langfuse: metrics", report);
        let ours = chosen(&named, names, of, key, report);
        if ours.is_empty() {
            report.say(Fate::Decide, &of.place(key), "none of them is left, so `metrics` is too: the scores of all metrics are sent");
        } else {
            sink.set("metrics", carried_all(ours));
        }
    }
    if key == "metric_names" && experiment.has("metrics") {
        report.say(Fate::Contradiction, &experiment.place("metrics"), "stands beside `publishing.metric_names`, which won; left out");
    }
    sink
}

/// Metrics by the names that they have here. A sink may name none that the monitor does not have.
fn chosen(named: &[String], names: &Names, of: &Section, key: &str, report: &mut Report) -> Vec<String> {
    let ours = named.iter().filter_map(|name| {
        let ours = names.get(name);
        if ours.is_none() {
            report.say(
                Fate::Decide,
                &of.place(key),
                format!("`{}` is left out: the monitor has no such metric, or has it commented out; add it here with the metric", one_line(name, 80)),
            );
        }
        ours.cloned()
    });
    ours.collect()
}

const ON_CONFLICT: [&str; 3] = ["do_nothing", "upsert", "error"];

fn postgres(old: &Section, needs: &mut Needs, report: &mut Report) -> Map {
    let mut sink = Map::default();
    sink.set("type", "postgres");
    let url = connection_string(old, ["connection_string", "connection_string"], report);
    sink.set("connection", needs.postgres(url, "results"));
    if let Some(rule) = old.text("on_conflict", report) {
        if ON_CONFLICT.contains(&rule.as_str()) || rule.contains("${") {
            sink.set("on_conflict", Yaml::Text(carried(&rule)));
            old.taken("on_conflict", "publish, type postgres: on_conflict", report);
        } else {
            report.fault(&old.place("on_conflict"), format!("`{}` is none of {}", one_line(&rule, 40), ON_CONFLICT.join(", ")));
        }
    }
    sink.set_some("chunk_size", old.count_up_to("chunk_size", MOST_ROWS, report));
    old.taken("chunk_size", "publish, type postgres: chunk_size", report);
    sink
}
