//! Alerts: what a round over very many of them costs, and how often rules cry wolf (a month of hourly runs of ten, pass and
//! fail, a rule at 0.80).

use std::{hint::black_box, time::Instant};

use anyhow::Context;
use assayd::{
    alerting::{
        AlertMemory, Condition, Hold, Rule,
        evidence::{Ask, step_on_evidence},
        simulate::{Candidate, Looks, Runs, alarms, delay},
    },
    model::Judged,
    statistics::evidence::{FRACTIONS, Promise},
    util::duration::Human,
};
use jiff::Timestamp;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    Size, process,
    report::{Report, median},
};

const HOURLY: Promise = Promise { confidence: 0.99, interval: 3600.0 };
const AT_ONCE: Rule = Rule { hold: Hold::Runs(1), repeat: Human::days(36_500), keep: Human::secs(0) };

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    round(size, report)?;
    table(size, report)
}

fn condition() -> anyhow::Result<Condition> {
    "mean < 0.8".parse().map_err(anyhow::Error::msg)
}

/// Scores of a run.
const SCORES: usize = 30;

/// One evaluation of every alert, each with a run of thirty scores. In a process of its own, so that what it takes is its own.
fn round(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let (alerts, scaled) = (size.pick(10_000, 1_000), size.pick(1.0, 10.0));
    let many = process::run(&mut process::this(&["round", &alerts.to_string()])?)?;
    let none = process::run(&mut process::this(&["round", "0"])?)?;
    let times: Vec<f64> = many.stdout.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let (reference, rounds) = times.split_first().context("figures of a round")?;
    let reference = format!("their logarithms alone, one a score and bettor: {:.1} ms", reference * scaled);
    report.figure("alerts: a round over 10,000 with a confidence, 30 scores each", median(rounds.to_vec()) * scaled, "ms", Some(50.0), &reference);
    let reference = format!("at its peak, above that of a process without any: {:.1} MiB", none.peak_mib);
    report.figure("alerts: memory of 10,000", (many.peak_mib - none.peak_mib) * scaled, "MiB", Some(20.0), &reference);
    Ok(())
}

/// The hidden command behind it: prints what the logarithms alone take, then each round, in milliseconds.
pub fn round_main(arguments: &[String]) -> anyhow::Result<()> {
    let alerts: usize = arguments.first().context("how many alerts")?.parse()?;
    let mut chance = StdRng::seed_from_u64(1);
    let judged: Vec<Judged> = (0..SCORES * 100).map(|_| Judged { value: Some(chance.random()), ..Judged::default() }).collect();
    let of = |alert: usize| &judged[alert % 100 * SCORES..][..SCORES];
    let ask = Ask { condition: condition()?, promise: HOURLY, min_samples: 0, about: "r", shared: None };
    let timed = |work: &mut dyn FnMut() -> anyhow::Result<()>| {
        let started = Instant::now();
        work()?;
        println!("{}", started.elapsed().as_secs_f64() * 1000.0);
        anyhow::Ok(())
    };
    let mut sum = 0.0;
    timed(&mut || {
        for judged in (0..alerts).flat_map(of) {
            sum += FRACTIONS.iter().map(|fraction| f64::ln_1p(fraction / 0.2 * (0.8 - judged.value.unwrap_or_default()))).sum::<f64>();
        }
        Ok(())
    })?;
    black_box(sum);
    let mut memories = vec![AlertMemory::default(); alerts];
    for run in 0..9_i64 {
        let (id, now) = (run.to_string(), Timestamp::from_second(1_767_225_600 + 3600 * run)?);
        timed(&mut || {
            for (at, memory) in memories.iter_mut().enumerate() {
                *memory = step_on_evidence(memory, &AT_ONCE, &ask, of(at), now.as_second(), now, &id).map_err(anyhow::Error::msg)?.0.memory;
            }
            Ok(())
        })?;
    }
    black_box(&memories);
    Ok(())
}

fn pass_and_fail(mean: f64) -> Vec<Judged> {
    (0..10_000).map(|item| Judged { value: Some(f64::from(u8::from(f64::from(item) < mean * 10_000.0))), ..Judged::default() }).collect()
}

/// What a rule is measured against: false alarms a month at 0.80, 0.82 and 0.85, delay to 0.75 and 0.65, as published with the
/// method.
struct Row {
    name: &'static str,
    candidate: Candidate,
    alarms: [f64; 3],
    delays: [f64; 2],
}

fn table(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let condition = condition()?;
    let window = |runs| Looks::Window { condition, end: None, min_samples: 1, runs };
    let evidence = |boost| Looks::Evidence { condition, promise: HOURLY, min_samples: 0, boost };
    let row =
        |name, hold, looks, alarms, delays| Row { name, candidate: Candidate { rule: Rule { hold: Hold::Runs(hold), ..AT_ONCE }, looks }, alarms, delays };
    let rows = [
        row("run mean < 0.80", 1, window(1), [157.0, 139.0, 106.0], [2.0, 1.0]),
        row("the same, 3 runs in a row", 3, window(1), [16.0, 9.8, 3.5], [17.0, 5.0]),
        row("mean of 24 runs < 0.80", 1, window(24), [32.0, 21.0, 2.9], [13.0, 7.0]),
        row("95 % interval of the run below 0.80", 1, Looks::Interval { condition }, [23.0, 15.0, 7.1], [13.0, 4.0]),
        row("confidence: 0.99", 1, evidence(1), [0.15, 0.01, 0.0], [77.0, 14.0]),
        row("confidence: 0.99 with boost", 1, evidence(5), [0.13, 0.0, 0.0], [37.0, 8.0]),
    ];
    let lives = size.pick(400, 40);
    for (at, Row { name, candidate, alarms: expected, delays }) in rows.into_iter().enumerate() {
        let mut chance = StdRng::seed_from_u64(at as u64);
        for (mean, expected) in [0.80, 0.82, 0.85].into_iter().zip(expected) {
            let judged = pass_and_fail(mean);
            let found = alarms(&candidate, Runs { judged: &judged, n: 10, interval: 3600.0 }, 720, lives, &mut chance);
            report.figure(&format!("alerts: {name}: alarms a month at {mean}"), found.mean, "", None, &format!("± {:.2}; published {expected}", found.se));
        }
        let usual = pass_and_fail(0.85);
        let usual = Runs { judged: &usual, n: 10, interval: 3600.0 };
        for (mean, expected) in [0.75, 0.65].into_iter().zip(delays) {
            let judged = pass_and_fail(mean);
            let Some(found) = delay(&candidate, usual, Runs { judged: &judged, ..usual }, 10_000, lives, &mut chance) else {
                anyhow::bail!("{name}: a fall to {mean} is never seen");
            };
            report.figure(&format!("alerts: {name}: runs until {mean} is seen"), found.mean, "", None, &format!("± {:.2}; published {expected}", found.se));
        }
    }
    Ok(())
}
