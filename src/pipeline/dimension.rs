//! Alerts with `by`: what an item is told by, and which alerts there are after a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{alerts::Ended, evaluate::Drawn, measure::since, view};
use crate::{
    alerting::{
        AlertMemory, OfValue,
        dimension::{NONE, OTHERS, Seen, WINDOWS, watched},
    },
    config::{AlertSpec, BySpec, MonitorSpec, Over},
    model::{AlertState, alert_of_value, alertname},
    store::{Since, Slice},
    util::{duration::Human, template::Expr, text::one_line},
};

/// Characters of a value: it stands in names, and tells no story.
const LONGEST: usize = 100;

/// An expression of the settings that alerts tell items by.
pub(super) struct Dimension {
    by: Arc<str>,
    expression: Expr,
}

impl Dimension {
    /// Those of a monitor, each once.
    pub(super) fn all(spec: &MonitorSpec) -> Result<Vec<Self>, String> {
        let texts: BTreeSet<&str> = spec.alerts.iter().filter_map(|alert| Some(alert.by.as_ref()?.value.as_str())).collect();
        texts.into_iter().map(|text| Ok(Self { by: text.into(), expression: Expr::lenient(text)? })).collect()
    }

    /// The expression and the item's value, untrusted text on one line. [`NONE`] where it gives nothing, or does not fit the item.
    pub(super) fn of(&self, item: &Drawn) -> (Arc<str>, String) {
        let value = self.expression.eval(&view::case(&item.case, &item.view, &BTreeMap::new())).ok();
        let value = value.filter(|value| !value.is_undefined() && !value.is_none());
        let text = value.map(|value| value.as_str().map_or_else(|| serde_json::to_string(&value).unwrap_or_default(), str::to_owned));
        let text = text.map(|text| one_line(&text, LONGEST)).filter(|text| !text.is_empty());
        (Arc::clone(&self.by), text.unwrap_or_else(|| NONE.to_owned()))
    }
}

/// One alert of a monitor: an alert of the settings, or a value of one.
pub(super) struct Watched<'a> {
    pub alert: &'a AlertSpec,
    /// `low`, or `low{prompt_version="v7"}`.
    pub name: String,
    /// The label that tells it from the alerts of other values, and the value.
    pub value: Option<(&'a str, String)>,
    /// The items that it looks at; `None` for all.
    pub slice: Option<Slice>,
}

impl<'a> Watched<'a> {
    fn plain(alert: &'a AlertSpec) -> Self {
        Self { alert, name: alert.name.clone(), value: None, slice: None }
    }

    fn of_value(alert: &'a AlertSpec, by: &'a BySpec, value: String, slice: Slice) -> Self {
        Self { alert, name: alert_of_value(&alert.name, &by.label, &value), value: Some((&by.label, value)), slice: Some(slice) }
    }

    /// What is measured, for people: `faithfulness{prompt_version="v7"}`, the monitor where it is no metric.
    pub(super) fn subject(&self, monitor: &str) -> String {
        let subject = self.alert.metric.as_deref().unwrap_or(monitor);
        self.value.as_ref().map_or_else(|| subject.to_owned(), |(label, value)| alert_of_value(subject, label, value))
    }

    /// Which of an alert's values it is, for its memory.
    pub(super) fn of(&self) -> Option<OfValue> {
        let (by, (_, value)) = (self.alert.by.as_ref()?, self.value.as_ref()?);
        Some(OfValue { by: by.value.clone(), value: value.clone() })
    }
}

/// The alerts that an alert of the settings has come to be.
pub(super) struct Alerts<'a> {
    /// With what is kept of each.
    pub watched: Vec<(Watched<'a>, AlertMemory)>,
    /// Alerts of values that are gone, with the reason.
    pub vanished: Vec<(String, AlertMemory, String)>,
}

/// Takes out of `memories` what is kept of the alert and still is about it: what another expression gave is left there, to be ended.
///
/// # Errors
/// The store's.
pub(super) async fn alerts<'a>(ended: Ended<'_>, alert: &'a AlertSpec, memories: &mut BTreeMap<String, AlertMemory>) -> Result<Alerts<'a>, sqlx::Error> {
    let Some(by) = &alert.by else {
        let before = memories.remove(&alert.name).unwrap_or_default();
        return Ok(Alerts { watched: vec![(Watched::plain(alert), before)], vanished: Vec::new() });
    };
    let mut kept = take_kept(alert, by, memories);
    let now = seen(ended, alert, by, 1).await?;
    let lately = seen(ended, alert, by, WINDOWS).await?;
    // Where nothing is seen at all it is the source that is quiet, not a value that is gone.
    let gone = |value: &str| !lately.is_empty() && lately.iter().all(|seen| seen.value != value);
    let placed: BTreeMap<&str, bool> =
        kept.iter().filter(|(value, _)| *value != OTHERS && !gone(value)).map(|(value, memory)| (value.as_str(), is_active(memory))).collect();
    let own: Vec<String> = watched(&now, &placed, by.limit).into_iter().collect();
    let beyond = |seen: &[Seen]| seen.iter().any(|seen| !own.contains(&seen.value));
    let others = beyond(&now) || kept.contains_key(OTHERS) && (beyond(&lately) || lately.is_empty());
    let mut alerts = Alerts { watched: Vec::new(), vanished: Vec::new() };
    let mut take = |value: &str, values: Vec<String>, inside| {
        let slice = Slice { by: by.value.clone(), values, inside };
        alerts.watched.push((Watched::of_value(alert, by, value.to_owned(), slice), kept.remove(value).unwrap_or_default()));
    };
    for value in &own {
        take(value, vec![value.clone()], true);
    }
    if others {
        take(OTHERS, own, false);
    }
    for (value, memory) in kept {
        let name = alert_of_value(&alert.name, &by.label, &value);
        let reason = match value.as_str() {
            OTHERS => format!("each {} has an alert of its own now", by.label),
            _ => format!("{} {value} vanished: none was judged in {WINDOWS} windows of {}", by.label, window(alert.over)),
        };
        alerts.vanished.push((name, memory, reason));
    }
    Ok(alerts)
}

/// What is kept of the alert's values, by value.
fn take_kept(alert: &AlertSpec, by: &BySpec, memories: &mut BTreeMap<String, AlertMemory>) -> BTreeMap<String, AlertMemory> {
    let its = |name: &String, memory: &AlertMemory| {
        let of = memory.of.as_ref().filter(|of| of.by == by.value)?;
        (alertname(name) == alert.name && *name == alert_of_value(&alert.name, &by.label, &of.value)).then(|| of.value.clone())
    };
    let names: Vec<(String, String)> = memories.iter().filter_map(|(name, memory)| Some((name.clone(), its(name, memory)?))).collect();
    names.into_iter().filter_map(|(name, value)| Some((value, memories.remove(&name)?))).collect()
}

fn is_active(memory: &AlertMemory) -> bool {
    matches!(memory.state, AlertState::Firing | AlertState::Pending)
}

/// The values in so many windows up to now.
async fn seen(ended: Ended<'_>, alert: &AlertSpec, by: &BySpec, windows: u32) -> Result<Vec<Seen>, sqlx::Error> {
    let over = match alert.over {
        Over::Last(window) => Over::Last(Human(window.0.saturating_mul(windows))),
        Over::Runs(runs) => Over::Runs(runs.saturating_mul(windows)),
    };
    let since = since(over, ended.now);
    let mut seen = of_metric(ended, alert.metric.as_deref(), &since, by).await?;
    // What failed as a whole failed for each part.
    let whole = alert.metric.as_deref().and_then(|metric| metric.split_once('.'));
    if let Some((whole, _)) = whole {
        for more in of_metric(ended, Some(whole), &since, by).await? {
            match seen.iter_mut().find(|seen| seen.value == more.value) {
                Some(seen) => *seen = Seen { value: more.value, n: seen.n + more.n, last_us: seen.last_us.max(more.last_us) },
                None => seen.push(more),
            }
        }
    }
    Ok(seen)
}

async fn of_metric(ended: Ended<'_>, metric: Option<&str>, since: &Since, by: &BySpec) -> Result<Vec<Seen>, sqlx::Error> {
    let rows = ended.services.store.values_seen(&ended.monitor.spec.name, metric, since, &by.value).await?;
    Ok(rows.into_iter().map(|row| Seen { value: row.value, n: row.n, last_us: row.last_us }).collect())
}

/// `24h`, `5 runs`
pub(super) fn window(over: Over) -> String {
    match over {
        Over::Last(window) => window.to_string(),
        Over::Runs(1) => "1 run".to_owned(),
        Over::Runs(runs) => format!("{runs} runs"),
    }
}
