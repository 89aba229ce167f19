//! The daily digest, in words: how each monitor did in a day, what fires first.

use crate::{
    model::{Coverage, DayTally},
    statistics::{
        interval::{SHOWN, wilson},
        real,
    },
    util::text::{clip, figure, one_line},
};

/// One monitor's day.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MonitorDay {
    pub monitor: String,
    /// By metric, in order.
    pub metrics: Vec<MetricDay>,
    pub coverage: Coverage,
    /// Of all judgements; `None` where no price is known.
    pub cost_usd: Option<f64>,
}

/// One metric's day, and the day before.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MetricDay {
    pub metric: String,
    pub day: DayTally,
    pub before: DayTally,
}

/// An alert that fires.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FiringAlert {
    pub monitor: String,
    pub alert: String,
    /// Untrusted text.
    pub reason: String,
}

/// Alerts that are named, the rest are counted.
const ALERTS: usize = 15;
/// Of one line, and of one monitor: a metric may give a hundred parts.
const LINE: usize = 200;
const PART: usize = 2_500;

/// The digest in one sentence, and its parts: what fires, then each monitor, its name in the first line.
#[must_use]
pub fn digest(date: &str, firing: &[FiringAlert], monitors: &[MonitorDay]) -> (String, Vec<String>) {
    let many = |n: usize, what: &str| if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") };
    let fires = match firing.len() {
        0 => "no alert fires".to_owned(),
        1 => "1 alert fires".to_owned(),
        n => format!("{n} alerts fire"),
    };
    let summary = format!("Daily digest of {date}: {}, {fires}", many(monitors.len(), "monitor"));
    let mut parts: Vec<String> = alerts(firing).into_iter().collect();
    parts.extend(monitors.iter().map(monitor));
    (summary, parts)
}

fn alerts(firing: &[FiringAlert]) -> Option<String> {
    if firing.is_empty() {
        return None;
    }
    let mut lines = vec!["Firing".to_owned()];
    lines.extend(firing.iter().take(ALERTS).map(|FiringAlert { monitor, alert, reason }| one_line(&format!("{alert} ({monitor}): {reason}"), LINE)));
    if firing.len() > ALERTS {
        lines.push(format!("and {} more alerts", firing.len() - ALERTS));
    }
    Some(lines.join("\n"))
}

fn monitor(day: &MonitorDay) -> String {
    let mut lines = vec![day.monitor.clone()];
    lines.extend(day.metrics.iter().filter_map(metric));
    if lines.len() == 1 {
        lines.push("no scores".to_owned());
    }
    let Coverage { judged, failed, deferred, waiting } = day.coverage;
    let drawn = judged + failed + deferred + waiting;
    let covered = (drawn > 0).then(|| format!("coverage {} % of {drawn} items", figure((real(judged) / real(drawn) * 1000.0).floor() / 10.0)));
    let cost = day.cost_usd.map(|usd| format!("cost {} USD", figure(usd)));
    let rest: Vec<String> = covered.into_iter().chain(cost).collect();
    if !rest.is_empty() {
        lines.push(rest.join(", "));
    }
    clip(&lines.join("\n"), PART)
}

/// `None` for a metric that gave no score.
fn metric(metric: &MetricDay) -> Option<String> {
    let mean = |day: DayTally| (day.n > 0).then(|| day.sum / real(day.n));
    let now = mean(metric.day)?;
    let interval = wilson(metric.day.sum, metric.day.n, None, SHOWN);
    let round = |value: f64| figure((value * 1000.0).round() / 1000.0);
    let change = match mean(metric.before) {
        None => "no score the day before".to_owned(),
        Some(before) => {
            let change = ((now - before) * 1000.0).round() / 1000.0;
            if change == 0.0 { "as the day before".to_owned() } else { format!("{}{}", if change > 0.0 { "+" } else { "" }, figure(change)) }
        }
    };
    Some(format!("{}: {} ({} to {}), n {}, {change}", one_line(&metric.metric, 100), round(now), round(interval.low), round(interval.high), metric.day.n))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(n: u64, sum: f64) -> DayTally {
        DayTally { n, sum }
    }

    #[test]
    fn what_fires_comes_first_and_each_monitor_has_its_figures() {
        let metric = |name: &str, day, before| MetricDay { metric: name.to_owned(), day, before };
        let metrics = vec![
            metric("faithfulness", tally(430, 352.6), tally(400, 320.0)),
            metric("helpful", tally(10, 5.0), tally(0, 0.0)),
            metric("tone", tally(4, 2.0), tally(2, 1.0)),
            metric("unused", tally(0, 0.0), tally(3, 1.0)),
        ];
        let coverage = Coverage { judged: 430, failed: 5, deferred: 3, waiting: 2 };
        let busy = MonitorDay { monitor: "support".to_owned(), metrics, coverage, cost_usd: Some(1.234_567) };
        let quiet = MonitorDay { monitor: "quiet".to_owned(), ..MonitorDay::default() };
        let firing = [FiringAlert { monitor: "support".to_owned(), alert: "low".to_owned(), reason: "mean 0.7\nof 9".to_owned() }];
        let (summary, parts) = digest("2026-01-02", &firing, &[busy, quiet]);
        insta::assert_snapshot!(format!("{summary}\n\n{}", parts.join("\n\n")), @"
        Daily digest of 2026-01-02: 2 monitors, 1 alert fires

        Firing
        low (support): mean 0.7 of 9

        support
        faithfulness: 0.82 (0.781 to 0.853), n 430, +0.02
        helpful: 0.5 (0.237 to 0.763), n 10, no score the day before
        tone: 0.5 (0.15 to 0.85), n 4, as the day before
        coverage 97.7 % of 440 items, cost 1.2346 USD

        quiet
        no scores
        ");
    }

    #[test]
    fn many_alerts_are_counted() {
        let firing = vec![FiringAlert { monitor: "m".to_owned(), alert: "a".to_owned(), reason: "x".repeat(900) }; 20];
        let (summary, parts) = digest("2026-01-02", &firing, &[]);
        assert_eq!(summary, "Daily digest of 2026-01-02: 0 monitors, 20 alerts fire");
        assert!(parts[0].ends_with("\nand 5 more alerts") && parts[0].lines().all(|line| line.chars().count() <= LINE));
    }
}
