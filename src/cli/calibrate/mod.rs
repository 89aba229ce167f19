//! `assayd calibrate MONITOR --labels FILE`: how far the judge agrees with people, and what they would have said of all that it
//! has judged.

mod labels;
mod report;

use std::{collections::HashMap, path::PathBuf};

use self::{
    labels::{Fields, Labels},
    report::{Judged, Pair, Report},
};
use super::{Failure, Format, Overrides, block_on, monitor, print, settings_without_keys};
use crate::{
    config::MonitorSpec,
    model::Score,
    store::{ExportFilter, Store},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    /// CSV with a header or JSON lines: item_id, label (pass, fail, true, false, or a number in [0, 1]), and rater where there are several
    #[arg(long)]
    labels: PathBuf,
    /// The judge; needed where the monitor has several metrics
    #[arg(long)]
    metric: Option<String>,
    /// How the labelled items were chosen: that decides how the mean is corrected
    #[arg(long, value_enum, default_value_t = Drawn::Hand)]
    drawn: Drawn,
    /// Field of the labels that names the item [default: item_id, or id]
    #[arg(long)]
    id_field: Option<String>,
    /// Field of the labels that holds the label; in JSON lines a path such as `human.correct`
    #[arg(long, default_value = "label")]
    label_field: String,
    /// true, or 1, means bad
    #[arg(long)]
    invert: bool,
    /// Disagreements shown
    #[arg(long, default_value_t = 20)]
    show: usize,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// How the items were chosen that people labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Drawn {
    /// At random from all judged items.
    Random,
    /// At random from those that passed and from those that failed, each.
    Verdict,
    /// By hand: such as so many good ones and so many bad ones.
    Hand,
}

/// Scores read at a time.
const PAGE: u32 = 1000;

pub(super) fn calibrate(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let spec = monitor(&settings, &arguments.monitor)?;
    let (metric, threshold, higher_is_better) = chosen(&spec, arguments.metric.as_deref())?;
    let fields = Fields { id: arguments.id_field.clone(), label: arguments.label_field.clone(), invert: arguments.invert };
    let labels = Labels::read(&arguments.labels, &fields)?;
    let scores = block_on(async { newest(&Store::open_to_read(&settings.state).await?, &spec.name, &metric).await })?;
    // Where less is better, everything is seen in a mirror: 1 is good for people, so it is for the judge.
    let turned = |x: f64| if higher_is_better { x } else { 1.0 - x };
    let threshold = threshold.map_or(0.5, turned);
    let judged = |score: &Score| {
        let value = turned(score.value?);
        // The metric's own word, where it has one.
        Some(Judged { value, passed: score.passed.unwrap_or(value >= threshold) })
    };
    let pairs: Vec<Pair<'_>> = labels
        .items
        .iter()
        .filter_map(|(id, labels)| {
            let score = scores.get(id)?;
            Some(Pair { item_id: id, labels, judge: judged(score)?, reason: &score.reason })
        })
        .collect();
    let labelled: std::collections::HashSet<&str> = pairs.iter().map(|pair| pair.item_id).collect();
    let rest: Vec<Judged> = scores.values().filter(|score| !labelled.contains(score.item_id.as_str())).filter_map(judged).collect();
    if pairs.len() < 2 {
        eprintln!(
            "assayd: of {} labelled items {} {} judged by {metric}; label some that are",
            labels.items.len(),
            pairs.len(),
            if pairs.len() == 1 { "was" } else { "were" }
        );
        return Err(Failure::Problems);
    }
    let report = Report::new(&metric, &pairs, &rest, &labels, arguments.drawn);
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&report).map_err(anyhow::Error::from)?)),
        Format::Table => print(&report.render(arguments.show)),
    }
}

/// The metric, its threshold, and whether more is better.
fn chosen(spec: &MonitorSpec, wanted: Option<&str>) -> Result<(String, Option<f64>, bool), Failure> {
    let known = || spec.metrics.iter().map(|metric| metric.name.as_str()).collect::<Vec<_>>().join(", ");
    let metric = match (wanted, spec.metrics.as_slice()) {
        (Some(name), _) => name.to_owned(),
        (None, [only]) => only.name.clone(),
        (None, _) => return Err(Failure::Usage(format!("the monitor has several metrics; choose one by --metric ({})", known()))),
    };
    let of = spec.metrics.iter().find(|known| known.config.gives().may_give(&known.name, &metric));
    let of = of.ok_or_else(|| Failure::Usage(format!("the monitor has no metric `{metric}` ({})", known())))?;
    Ok((metric, of.threshold, of.higher_is_better))
}

/// The newest score of each item, of the revision that judged last.
async fn newest(store: &Store, monitor: &str, metric: &str) -> Result<HashMap<String, Score>, Failure> {
    let filter = ExportFilter { monitor: Some(monitor.to_owned()), since_us: None };
    let (mut after, mut revision, mut newest) = (0, String::new(), HashMap::new());
    loop {
        let (scores, next) = store.export(&filter, after, PAGE).await?;
        for score in scores.into_iter().filter(|score| score.metric == metric && score.outcome == "scored") {
            if score.metric_revision != revision {
                revision.clone_from(&score.metric_revision);
                newest.clear();
            }
            newest.insert(score.item_id.clone(), score);
        }
        let Some(next) = next else { return Ok(newest) };
        after = next;
    }
}
