//! `metrics_config:` of the older tool: classes of Python frameworks, by a label each.

use std::collections::BTreeMap;

use super::{
    needs::{Needs, is_known},
    old::{Figure, Section, carried},
    report::{Fate, Report},
    todo,
    yaml::{List, Map, Yaml},
};
use crate::util::text::one_line;

/// What we have for a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ours {
    /// A judge's rubric, and what of a case it needs.
    Rubric(&'static str, Option<&'static str>),
    /// A heuristic.
    Free(&'static str, Option<&'static str>),
}

/// Classes as the common frameworks name them, without `Metric`, letters and digits in lower case.
const CLASSES: [(&[&str], Ours); 10] = [
    (&["faithfulness"], Ours::Rubric("faithfulness", Some("context"))),
    (&["answerrelevancy", "answerrelevance", "responserelevancy", "responserelevance"], Ours::Rubric("answer_relevancy", None)),
    (&["answercorrectness", "factualcorrectness", "answeraccuracy", "correctness"], Ours::Rubric("correctness", Some("expected"))),
    (&["hallucination"], Ours::Rubric("hallucination", None)),
    (&["toxicity"], Ours::Rubric("toxicity", None)),
    (&["helpfulness"], Ours::Rubric("helpfulness", None)),
    (&["conciseness", "answerconciseness"], Ours::Rubric("conciseness", None)),
    (&["refusal"], Ours::Rubric("refusal", None)),
    (&["exactmatch", "exactstringmatch", "exactmatching"], Ours::Free("equals", Some("expected"))),
    (&["levenshtein", "levenshteinratio", "levenshteindistance", "nonllmstringsimilarity"], Ours::Free("levenshtein", Some("expected"))),
];

/// Modules whose classes these are; in any other a class of the same name may be the user's own.
const FRAMEWORKS: [&str; 3] = ["axion", "deepeval", "ragas"];

fn ours(class: &str) -> Option<Ours> {
    let mut path = class.rsplit('.');
    let name = path.next().unwrap_or_default();
    if class.contains('.') && !FRAMEWORKS.iter().any(|framework| class.starts_with(&format!("{framework}."))) {
        return None;
    }
    let word: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let word = word.strip_suffix("metric").filter(|word| !word.is_empty()).unwrap_or(&word);
    CLASSES.iter().find(|(names, _)| names.contains(&word)).map(|(_, ours)| *ours)
}

/// What evaluation settings say of all metrics.
pub(super) struct Pace {
    /// Requests a minute that the pauses between calls came to.
    pub rpm: Option<u64>,
}

/// The labels of the metrics that the monitor has, each with its name here.
pub(super) type Names = BTreeMap<String, String>;

pub(super) fn translate(old: &Section, thresholds: &Section, pace: &Pace, needs: &mut Needs, report: &mut Report) -> (List, Names) {
    let mut metrics = List::default();
    let mut names = Names::new();
    if old.entries().is_empty() && report.faults.is_empty() {
        report.fault(&old.here(), "the monitor has no metrics");
    }
    for (label, _, node) in old.entries() {
        let of = Section::new(node, &format!("metrics_config.{label}"), report);
        if label.is_empty() {
            report.fault(&of.here(), "the metric needs a label");
        }
        let name = name(label, old, &of, report);
        let made = metric(label, &name, &of, thresholds, pace, needs, report);
        match made {
            Some(Made::Ours(metric)) => {
                names.insert(label.clone(), name);
                metrics.push(metric);
            }
            Some(Made::Stub(todo, metric)) => metrics.push_off(&todo, metric),
            None => {}
        }
        of.finish(report);
    }
    if metrics.is_bare() && report.faults.is_empty() {
        let mut stand_in = Map::default();
        stand_in.set("name", "answered");
        stand_in.set("type", "length");
        stand_in.set("min", 1_u64);
        report.say(
            Fate::Decide,
            &old.here(),
            "none of the metrics is one of ours: `answered` (there is an answer) stands in, so that the monitor loads; take it out once another one is there",
        );
        metrics.push(stand_in);
    }
    (metrics, names)
}

/// A label without dots, which part a metric's name from its outcome's, and unlike the others.
fn name(label: &str, all: &Section, of: &Section, report: &mut Report) -> String {
    if !label.contains('.') {
        return label.to_owned();
    }
    let plain = |label: &str| label.replace('.', "_");
    let taken = |name: &str| {
        all.entries().iter().take_while(|(other, ..)| other != label).any(|(other, ..)| plain(other) == name)
            || all.entries().iter().any(|(other, ..)| other == name)
    };
    let mut names = std::iter::once(plain(label)).chain((2..).map(|n| format!("{}_{n}", plain(label))));
    let name = names.find(|name| !taken(name)).unwrap_or_else(|| plain(label));
    report.say(Fate::Changed, &of.here(), format!("`{name}`: a metric's name has no dot here, since `METRIC.PART` names one of several outcomes"));
    name
}

/// What came of a metric.
enum Made {
    Ours(Map),
    /// Commented out, below what there is to do.
    Stub(String, Map),
}

fn metric(label: &str, name: &str, of: &Section, thresholds: &Section, pace: &Pace, needs: &mut Needs, report: &mut Report) -> Option<Made> {
    let Some(class) = of.text("class", report) else {
        if !of.has("class") {
            report.fault(&of.here(), "`class` is missing");
        }
        return None;
    };
    let mut metric = Map::default();
    metric.set("name", name);
    let threshold = threshold(label, of, thresholds, report);
    let provider = of.text("llm_provider", report);
    let model = of.text("model_name", report);
    match ours(&class) {
        Some(Ours::Rubric(rubric, wants)) => {
            metric.set("type", "judge");
            metric.set("rubric", rubric);
            metric.set("model", profile(of, provider, model, pace, needs, report));
            verdict(rubric, threshold, of, &mut metric, report);
            report.say(
                Fate::Changed,
                &of.place("class"),
                format!(
                    "`{}` is judged by the rubric `{rubric}` in one question, not by the framework's steps: compare the scores before you rely on a threshold",
                    one_line(&class, 60)
                ),
            );
            asks_for(wants, of, report);
            Some(Made::Ours(metric))
        }
        Some(Ours::Free(kind, wants)) => {
            metric.set("type", kind);
            metric.set_some("threshold", threshold.filter(|_| kind != "equals"));
            for key in ["llm_provider", "model_name"] {
                of.drop(key, "this one asks no model", report);
            }
            report.say(Fate::Taken, &of.place("class"), format!("type: {kind}"));
            asks_for(wants, of, report);
            Some(Made::Ours(metric))
        }
        None => {
            let name = class.rsplit('.').next().unwrap_or_default();
            metric.set("type", "exec");
            metric.set("command", ["python3".to_owned(), format!("metrics/{}.py", super::needs::slug(name))].into_iter().collect::<List>());
            metric.set_some("threshold", threshold);
            let shown = format!("`{}`", one_line(&class, 120));
            report.say(
                Fate::Decide,
                &of.place("class"),
                format!("{shown} is a Python class and has no counterpart: a commented `exec` block waits for the command that runs it"),
            );
            for key in ["llm_provider", "model_name"] {
                of.drop(key, "the command chooses its model", report);
            }
            Some(Made::Stub(todo(include_str!("todo/exec.txt"), &shown), metric))
        }
    }
}

/// From the metric itself, or from `evaluation.thresholds`.
fn threshold(label: &str, of: &Section, thresholds: &Section, report: &mut Report) -> Option<Yaml> {
    let own = of.figure("threshold", report);
    let place = of.place("threshold");
    let (found, place) = match own {
        Some(own) => (Some(own), place),
        None => {
            let node = thresholds.entries().iter().find(|(key, ..)| key == label).map(|(.., node)| node)?;
            let place = super::report::Place { at: node.at.clone(), key: format!("evaluation.thresholds.{label}") };
            match &node.value {
                crate::util::yaml::Value::Float(x) => (Some(Figure::Known(*x)), place),
                #[expect(clippy::cast_precision_loss, reason = "thresholds are small")]
                crate::util::yaml::Value::Int(n) => (Some(Figure::Known(*n as f64)), place),
                _ => {
                    report.fault(&place, format!("expected a number, found {}", node.describe()));
                    return None;
                }
            }
        }
    };
    if let Some(Figure::Known(n)) = found
        && !(0.0..=1.0).contains(&n)
    {
        report.say(Fate::Decide, &place, "a threshold lies in [0, 1] here, as values do; left out");
        return None;
    }
    report.say(Fate::Taken, &place, "threshold");
    found.map(Yaml::from)
}

/// A threshold under a rubric: which way round, and whether there is anything between yes and no.
fn verdict(rubric: &str, threshold: Option<Yaml>, of: &Section, metric: &mut Map, report: &mut Report) {
    match rubric {
        "hallucination" | "refusal" => {
            if threshold.is_some() {
                report.say(Fate::Changed, &of.here(), format!("the rubric `{rubric}` answers yes (free of it) or no, so it needs no threshold; left out"));
            }
        }
        "toxicity" => {
            metric.set_some("threshold", threshold);
            metric.set("higher_is_better", false);
        }
        _ => metric.set_some("threshold", threshold),
    }
}

fn asks_for(wants: Option<&str>, of: &Section, report: &mut Report) {
    if let Some(field) = wants {
        report.say(Fate::Decide, &of.here(), format!("needs `extract.{field}`: an item without it is not applicable, and is not judged"));
    }
}

fn profile(of: &Section, provider: Option<String>, model: Option<String>, pace: &Pace, needs: &mut Needs, report: &mut Report) -> String {
    let provider = provider.unwrap_or_else(|| {
        report.say(Fate::Decide, &of.here(), "no `llm_provider`: `openai` is taken");
        "openai".to_owned()
    });
    if !is_known(&provider) {
        report.say(
            Fate::Decide,
            &of.place("llm_provider"),
            format!("`{}` is taken for a server that speaks the protocol of OpenAI: say its address in assayd.yaml", one_line(&provider, 40)),
        );
    }
    let model = model.unwrap_or_else(|| {
        report.say(Fate::Decide, &of.here(), "no `model_name`: set JUDGE_MODEL, or write the model into the profile");
        "${JUDGE_MODEL:?the model that judges}".to_owned()
    });
    let name = needs.profile(&carried(&provider), &carried(&model), pace.rpm);
    of.taken("llm_provider", "the provider of the profile in assayd.yaml", report);
    of.taken("model_name", &format!("model: {name}, a profile of assayd.yaml"), report);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_of_the_common_frameworks_are_known_and_a_users_own_are_not() {
        for class in ["faithfulness", "Faithfulness", "FaithfulnessMetric", "deepeval.metrics.FaithfulnessMetric", "ragas.metrics.Faithfulness"] {
            assert_eq!(ours(class), Some(Ours::Rubric("faithfulness", Some("context"))), "{class}");
        }
        assert_eq!(ours("answer_relevancy"), Some(Ours::Rubric("answer_relevancy", None)));
        assert_eq!(ours("ExactMatch"), Some(Ours::Free("equals", Some("expected"))));
        for class in ["acme.metrics.Faithfulness", "uw_faithfulness", "Metric", "", "deepeval.metrics.GEval"] {
            assert_eq!(ours(class), None, "{class}");
        }
    }
}
