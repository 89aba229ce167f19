//! The timer queue with very many monitors: how late a slot reaches its task, and whether one is lost.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, bail};
use assayd::{
    schedule::{
        clock::{Clock, SystemClock},
        plan::{Plan, ScheduleSpec},
        queue::{Due, Queue},
    },
    util::duration::Human,
};
use jiff::Timestamp;
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::{
    Size, process,
    report::{Report, percentile, shown},
};

#[derive(Debug)]
struct Lateness {
    /// Milliseconds, sorted.
    ms: Vec<f64>,
    expected: u64,
}

impl Lateness {
    fn at(&self, share: f64) -> f64 {
        percentile(&self.ms, share)
    }

    fn shown(&self) -> String {
        format!(
            "p50 {}, max {}, lost {} of {}",
            shown(self.at(0.5), "ms"),
            shown(self.at(1.0), "ms"),
            self.expected.saturating_sub(self.ms.len() as u64),
            self.expected
        )
    }
}

/// `monitors` on one interval, their slots spread over it by the jitter or all at one instant, for some intervals.
fn ours(monitors: usize, every: Duration, spread: bool, intervals: u32) -> anyhow::Result<Lateness> {
    let jitter = if spread { every.saturating_sub(Duration::from_millis(1)) } else { Duration::ZERO };
    let spec = ScheduleSpec { every: Some(Human(every)), jitter: Human(jitter), ..ScheduleSpec::default() };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (fired, mut due) = tokio::sync::mpsc::unbounded_channel::<Due>();
    let queue = Queue::start(Arc::new(SystemClock), move |due| {
        let _ = fired.send(due);
    })?;
    let plans: Vec<(Arc<str>, Arc<Plan>)> = (0..monitors)
        .map(|number| {
            let name = format!("m{number:05}");
            Plan::new(&spec, &name).map(|plan| (Arc::from(name), Arc::new(plan)))
        })
        .collect::<Result<_, _>>()?;
    // Slots of whole intervals that begin late enough for every monitor to be in the queue by then.
    let step = i64::try_from(every.as_millis())?;
    let now = SystemClock.now().as_millisecond();
    let start = Timestamp::from_millisecond(((now + 500).div_euclid(step) + 1) * step - 1)?;
    for (name, plan) in &plans {
        queue.set(name, Arc::clone(plan), start);
    }
    let until = start + jiff::SignedDuration::try_from(every * intervals)?;
    let expected = plans
        .iter()
        .map(|(_, plan)| std::iter::successors(plan.next_after(start), |slot| plan.next_after(*slot)).take_while(|slot| *slot <= until).count() as u64)
        .sum();
    let seen = Arc::new(Mutex::new(Vec::new()));
    runtime.block_on(async {
        // A little longer than the last slot: what comes later than that counts as lost.
        let end = Duration::try_from(until.duration_since(SystemClock.now()))? + Duration::from_millis(900);
        let deadline = tokio::time::Instant::now() + end;
        while let Ok(Some(due)) = tokio::time::timeout_at(deadline, due.recv()).await {
            if due.slot > until {
                continue;
            }
            let seen = Arc::clone(&seen);
            #[expect(clippy::disallowed_methods, reason = "stands for the supervisor: a run is a task of its own")]
            tokio::spawn(async move {
                let late = SystemClock.now().duration_since(due.slot).as_secs_f64() * 1000.0;
                seen.lock().unwrap_or_else(PoisonError::into_inner).push(late);
            });
        }
        anyhow::Ok(())
    })?;
    drop((queue, runtime));
    let mut ms = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
    ms.sort_by(f64::total_cmp);
    Ok(Lateness { ms, expected })
}

/// The same by tokio-cron-scheduler with its defaults, all at one instant: a process of its own.
fn theirs(monitors: usize, rounds: u32) -> anyhow::Result<Lateness> {
    let used = process::run(&mut process::this(&["scheduler", "together", &monitors.to_string(), &rounds.to_string()])?)?;
    let mut numbers = used.stdout.split_ascii_whitespace().map(str::parse::<f64>);
    let expected = numbers.next().context("no figures")?? as u64;
    let mut ms: Vec<f64> = numbers.collect::<Result<_, _>>()?;
    ms.sort_by(f64::total_cmp);
    Ok(Lateness { ms, expected })
}

/// `scheduler idle JOBS`: waits, after a line that says that it does.
/// `scheduler together JOBS ROUNDS`: prints how many fires were expected, then how late each was, in milliseconds.
pub fn reference_main(arguments: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match words[..] {
        ["idle", jobs] => runtime.block_on(async {
            let seen = Arc::new(Mutex::new(Vec::new()));
            let _scheduler = jobs_of("0 0 4 1 1 *", jobs.parse()?, &seen, Timestamp::MAX).await?;
            println!("waits");
            std::future::pending::<anyhow::Result<()>>().await
        }),
        ["together", jobs, rounds] => runtime.block_on(async {
            let (jobs, rounds): (u64, u64) = (jobs.parse()?, rounds.parse()?);
            let seen = Arc::new(Mutex::new(Vec::new()));
            // Adding takes seconds: count from a slot by which all are in.
            let begin = Timestamp::from_second((Timestamp::now().as_second() + 20) / 10 * 10)?;
            let _scheduler = jobs_of("*/10 * * * * *", jobs, &seen, begin).await?;
            anyhow::ensure!(Timestamp::now() < begin, "adding the jobs took too long");
            let end = begin + jiff::SignedDuration::from_secs(i64::try_from(rounds)? * 10 - 5);
            tokio::time::sleep(Duration::try_from(end.duration_since(Timestamp::now()))?).await;
            println!("{}", jobs * rounds);
            for late in seen.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                println!("{late:.3}");
            }
            Ok(())
        }),
        _ => bail!("scheduler idle JOBS | scheduler together JOBS ROUNDS"),
    }
}

/// Jobs that note how late they are against the nearest ten seconds, from `begin` on.
async fn jobs_of(cron: &str, jobs: u64, seen: &Arc<Mutex<Vec<f64>>>, begin: Timestamp) -> anyhow::Result<JobScheduler> {
    let scheduler = JobScheduler::new().await?;
    let added = AtomicU64::new(0);
    for _ in 0..jobs {
        let seen = Arc::clone(seen);
        let job = Job::new_async(cron, move |_, _| {
            let seen = Arc::clone(&seen);
            Box::pin(async move {
                let ms = Timestamp::now().as_millisecond();
                let slot = (ms + 5_000).div_euclid(10_000) * 10_000;
                if slot >= begin.as_millisecond() {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push((ms - slot) as f64);
                }
            })
        })?;
        scheduler.add(job).await?;
        added.fetch_add(1, Ordering::Relaxed);
    }
    scheduler.start().await?;
    anyhow::ensure!(added.into_inner() == jobs, "not all jobs were added");
    Ok(scheduler)
}

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let monitors = size.pick(10_000, 1_000);
    let spread = ours(monitors, Duration::from_secs(size.pick(60, 10)), true, 1)?;
    let together = ours(monitors, Duration::from_secs(10), false, size.pick(3, 1))?;
    let reference = theirs(monitors, size.pick(3, 1))?;
    let lost = |lateness: &Lateness| lateness.expected.saturating_sub(lateness.ms.len() as u64) as f64;
    report.figure(
        &format!("slots lost, {monitors} monitors"),
        lost(&spread) + lost(&together),
        "",
        Some(0.0),
        &format!("tokio-cron-scheduler, all at once: {} of {}", lost(&reference), reference.expected),
    );
    report.figure(&format!("lateness p99, {monitors} monitors spread over the minute"), spread.at(0.99), "ms", Some(10.0), &spread.shown());
    let against = format!("{}; tokio-cron-scheduler: p99 {}, {}", together.shown(), shown(reference.at(0.99), "ms"), reference.shown());
    report.figure(&format!("lateness p99, {monitors} monitors all at once"), together.at(0.99), "ms", Some(50.0), &against);
    Ok(())
}
