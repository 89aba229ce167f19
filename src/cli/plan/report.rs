//! What `assayd plan` prints. The JSON is stable.

use std::{collections::BTreeMap, fmt::Write};

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::{
    alerting::replay::Firing,
    model::{CostBy, Per},
    util::{duration::Human, text::figure},
};

#[derive(Default, Serialize)]
pub(super) struct Report {
    /// How far back alerts were tried.
    pub days: u32,
    pub added: Vec<String>,
    pub changed: Vec<String>,
    pub removed: Vec<String>,
    pub unchanged: usize,
    /// As `assayd validate` says them.
    pub faults: Vec<String>,
    pub monitors: Vec<MonitorPlan>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Change {
    /// No run of it is known.
    Added,
    Changed,
    Unchanged,
}

#[derive(Serialize)]
pub(super) struct MonitorPlan {
    pub monitor: String,
    pub change: Change,
    /// Keys whose values are not those of the last run.
    pub keys: Vec<String>,
    /// Between two runs, on average.
    #[serde(rename = "every_seconds", serialize_with = "seconds")]
    pub every: Human,
    pub run: RunPlan,
    /// `None` where no price is known, or the source could not be looked at.
    pub cost: Option<Cost>,
    pub alerts: Vec<AlertPlan>,
    pub notes: Vec<String>,
}

fn seconds<S: Serializer>(time: &Human, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(time.0.as_secs())
}

/// Of all runs of the window that was looked at.
#[derive(Serialize)]
pub(super) struct RunPlan {
    pub since: Timestamp,
    pub until: Timestamp,
    pub runs: f64,
    pub fetched: u64,
    pub filtered: u64,
    pub not_applicable: u64,
    pub failed: u64,
    pub sampled_out: u64,
    pub judged: u64,
    pub judgements: BTreeMap<String, u64>,
    pub fetched_a_run: f64,
    pub judged_a_run: f64,
    pub error: Option<String>,
}

impl RunPlan {
    pub(super) fn failed(since: Timestamp, until: Timestamp, error: String) -> Self {
        Self {
            since,
            until,
            runs: 0.0,
            fetched: 0,
            filtered: 0,
            not_applicable: 0,
            failed: 0,
            sampled_out: 0,
            judged: 0,
            judgements: BTreeMap::new(),
            fetched_a_run: 0.0,
            judged_a_run: 0.0,
            error: Some(error),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Cost {
    pub usd_a_run: f64,
    pub usd_a_day: f64,
    pub usd_a_month: f64,
    /// `None` where nothing is paid for.
    pub by: Option<CostBy>,
    pub budgets: Vec<BudgetPlan>,
}

#[derive(Serialize)]
pub(super) struct BudgetPlan {
    pub usd: f64,
    pub per: Per,
    pub expected_usd: f64,
    pub fits: bool,
}

#[derive(Serialize)]
pub(super) struct AlertPlan {
    pub name: String,
    pub condition: String,
    pub confidence: Option<f64>,
    /// What it was tried on.
    pub runs: usize,
    pub scores: u64,
    pub fired: Vec<Firing>,
    /// When people were told by the alert as it is now; `None` where there is none of that name.
    pub present: Option<Vec<Firing>>,
    pub falls: Option<Fall>,
}

#[derive(Serialize)]
pub(super) struct Fall {
    /// The mean of the scores that stand for what is usual, and how many they are.
    pub usual: f64,
    pub scores: usize,
    /// Judgements a run.
    pub n: f64,
    pub delays: Vec<Delay>,
    pub noise: Option<String>,
}

#[derive(Serialize)]
pub(super) struct Delay {
    /// The mean that is fallen (or risen) to.
    pub to: f64,
    /// Runs until it is told, about; `None` where it is not.
    pub runs: Option<f64>,
}

impl Report {
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        for fault in &self.faults {
            let _ = writeln!(out, "{fault}");
        }
        let listed = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        let (added, changed, removed) = (listed(&self.added), listed(&self.changed), listed(&self.removed));
        let _ = writeln!(out, "added: {added}; changed: {changed}; removed: {removed}; as they last ran: {}", self.unchanged);
        for monitor in &self.monitors {
            let _ = write!(out, "\n{}", monitor.render(self.days));
        }
        out
    }
}

impl MonitorPlan {
    fn render(&self, days: u32) -> String {
        let mut out = match self.change {
            Change::Added => format!("{}: new\n", self.monitor),
            Change::Changed => format!("{}: changed: {}\n", self.monitor, self.keys.join(", ")),
            Change::Unchanged => format!("{}: as it last ran\n", self.monitor),
        };
        let run = &self.run;
        if let Some(error) = &run.error {
            let _ = writeln!(out, "  the source could not be looked at in full: {error}");
        }
        let judgements = run.judgements.iter().map(|(metric, n)| format!("{n} by {metric}")).collect::<Vec<_>>().join(", ");
        let left = [("filtered", run.filtered), ("not applicable", run.not_applicable), ("failed", run.failed), ("not drawn", run.sampled_out)];
        let left: String = left.iter().filter(|(_, n)| *n > 0).map(|(what, n)| format!(", {n} {what}")).collect();
        let _ = writeln!(out, "  of {:.0} to {:.0}: {} fetched{left}, {} judged{}", run.since, run.until, run.fetched, run.judged, bracketed(&judgements));
        let _ = writeln!(out, "  a run, every {}: {} fetched, {} judged", self.every, tenths(run.fetched_a_run), tenths(run.judged_a_run));
        match &self.cost {
            Some(cost) => out += &cost.render(),
            None => out += "  cost: not known; a price is missing, or nothing could be looked at\n",
        }
        self.alerts.iter().for_each(|alert| out += &alert.render(days, self.every));
        for note in &self.notes {
            let _ = writeln!(out, "  note: {note}");
        }
        out
    }
}

fn bracketed(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

fn tenths(x: f64) -> String {
    figure((x * 10.0).round() / 10.0)
}

fn hundredths(x: f64) -> String {
    figure((x * 100.0).round() / 100.0)
}

impl Cost {
    fn render(&self) -> String {
        let by = match self.by {
            None => return "  cost: nothing is paid for\n".to_owned(),
            Some(CostBy::History) => "by what judgements cost so far",
            Some(CostBy::Prices) => "an estimate by the size of the questions and the price list",
            Some(CostBy::Both) => "by what judgements cost so far, where that is known, else by the price list",
        };
        let mut out =
            format!("  cost: about {:.4} USD a run, {:.2} a day, {:.2} a month of 30 days ({by})\n", self.usd_a_run, self.usd_a_day, self.usd_a_month);
        for budget in &self.budgets {
            let fits = if budget.fits { "is enough" } else { "is NOT enough: judgements will wait" };
            let _ = writeln!(out, "  the budget of {} USD per {} {fits} ({:.4} expected)", figure(budget.usd), budget.per.as_str(), budget.expected_usd);
        }
        out
    }
}

impl AlertPlan {
    fn render(&self, days: u32, every: Human) -> String {
        let confidence = self.confidence.map(|confidence| format!(", confidence {}", figure(confidence))).unwrap_or_default();
        let mut out = format!("  alert {} ({}{confidence}), {} runs and {} scores of {days} days:\n", self.name, self.condition, self.runs, self.scores);
        let _ = writeln!(out, "    would have fired: {}", listed(&self.fired));
        if let Some(present) = &self.present {
            let _ = writeln!(out, "    as it is now, people were told: {}", listed(present));
        }
        if let Some(falls) = &self.falls {
            out += &falls.render(every);
        }
        out
    }
}

fn listed(firings: &[Firing]) -> String {
    let one = |firing: &Firing| match firing.resolved {
        Some(resolved) => format!("{:.0} to {resolved:.0}", firing.at),
        None => format!("{:.0}, not over yet", firing.at),
    };
    if firings.is_empty() { "never".to_owned() } else { firings.iter().map(one).collect::<Vec<_>>().join("; ") }
}

impl Fall {
    fn render(&self, every: Human) -> String {
        let mut out = String::new();
        let seen: Vec<(f64, f64)> = self.delays.iter().filter_map(|delay| Some((delay.to, delay.runs?))).collect();
        let what = if seen.first().is_some_and(|(to, _)| *to > self.usual) { "rise" } else { "fall" };
        let n = tenths(self.n);
        if let [(to, runs), rest @ ..] = seen.as_slice() {
            let rest: String = rest.iter().map(|(to, runs)| format!(", to {} in {}", hundredths(*to), figure(runs.ceil()))).collect();
            let _ = writeln!(out, "    n = {n} every {every}: a {what} to {} is seen in about {} runs{rest}", hundredths(*to), figure(runs.ceil()));
        }
        let unseen: Vec<String> = self.delays.iter().filter(|delay| delay.runs.is_none()).map(|delay| hundredths(delay.to)).collect();
        if !unseen.is_empty() {
            let _ = writeln!(out, "    the usual mean is {}: a change to {} is not seen", hundredths(self.usual), unseen.join(" or "));
        }
        if let Some(noise) = &self.noise {
            let _ = writeln!(out, "    {noise}");
        }
        out
    }
}
