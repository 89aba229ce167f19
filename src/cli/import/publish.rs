//! `publishing:` of the older tool.

use super::{
    needs::Needs,
    old::{Section, carried, carried_all, whole},
    report::{Fate, Report},
    source::connection_string,
    yaml::{List, Map, Yaml},
};
use crate::util::text::one_line;

/// `source` is the type of our source.
pub(super) fn translate(old: &Section, source: &str, needs: &mut Needs, report: &mut Report) -> List {
    let mut sinks = List::default();
    let experiment = old.section("experiment", report);
    let database = old.section("database", report);
    let wants_scores = old.is_set("push_to_langfuse", false, report);
    // There, an experiment that was not switched off was on.
    let wants_experiment = experiment.is_there() && experiment.is_set("enabled", true, report);
    let on_traces = experiment.is_set("score_on_runtime_traces", false, report);
    if wants_scores || wants_experiment {
        sinks.push(langfuse(old, &experiment, wants_scores || on_traces, wants_experiment, needs, report));
    } else {
        for key in ["trace_experiment", "experiment"] {
            old.drop(key, "nothing was published to Langfuse there", report);
        }
        // So that its keys count as known.
        let _ = langfuse(old, &experiment, false, false, &mut Needs::default(), &mut Report::default());
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

fn langfuse(old: &Section, experiment: &Section, scores: bool, with_experiment: bool, needs: &mut Needs, report: &mut Report) -> Map {
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
    let metrics = match old.texts("metric_names", report) {
        Some(names) => {
            old.taken("metric_names", "publish, type langfuse: metrics", report);
            if experiment.has("metrics") {
                report.say(Fate::Contradiction, &experiment.place("metrics"), "stands beside `publishing.metric_names`, which won; left out");
            }
            Some(names)
        }
        None => {
            experiment.taken("metrics", "publish, type langfuse: metrics", report);
            experiment.texts("metrics", report)
        }
    };
    sink.set_some("metrics", metrics.filter(|names| !names.is_empty()).map(carried_all));
    sink
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
    sink.set_some("chunk_size", old.count("chunk_size", report));
    old.taken("chunk_size", "publish, type postgres: chunk_size", report);
    sink
}
