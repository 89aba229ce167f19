//! The daemon as it waits, starts and takes up a change.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::ensure;

use crate::{
    Size, process,
    process::Background,
    report::{Report, median, shown},
    site::Site,
};

/// No server is reached: these monitors are not due while we look.
const NOWHERE: &str = "http://127.0.0.1:9";

fn idle_monitor(number: usize, description: &str) -> String {
    format!(
        "name: m{number:05}\ndescription: {description}\nschedule: {{ cron: \"{} 4 1 1 *\", jitter: 10m }}\nlabels: {{ team: bench }}\n\
         source: {{ type: langfuse, names: [chat-turn], settle: 5m }}\nsampling: {{ strategy: random, n: 30 }}\n\
         metrics:\n  - {{ name: answered, type: regex, pattern: \"(?i)i (can't|cannot|am unable)\", invert: true }}\n\
         \x20 - name: helpful\n    type: judge\n    rubric: helpfulness\n    model: judge\n    when: scores.answered.passed\n    threshold: 0.5\n\
         publish: [ {{ type: langfuse }} ]\n\
         alerts:\n  - {{ name: helpful-low, metric: helpful, when: mean < 0.7, over: 24h, min_samples: 30 }}\n",
        number % 60
    )
}

fn idle_site(monitors: usize) -> anyhow::Result<Site> {
    let site = Site::new(NOWHERE, 16)?;
    for number in 0..monitors {
        site.monitor(&format!("m{number:05}"), &idle_monitor(number, "waits"))?;
    }
    Ok(site)
}

/// Share of a core over a while, in percent.
fn idle_cpu(daemon: &Background, over: Duration) -> anyhow::Result<f64> {
    let before = process::cpu(daemon.pid())?;
    std::thread::sleep(over);
    Ok(process::cpu(daemon.pid())?.saturating_sub(before).as_secs_f64() / over.as_secs_f64() * 100.0)
}

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    hundred(size, report)?;
    thousand(size, report)?;
    ten_thousand(size, report)?;
    slots(size, report)
}

fn hundred(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let site = idle_site(100)?;
    let (daemon, _) = site.daemon()?;
    std::thread::sleep(Duration::from_secs(size.pick(10, 3)));
    let rss = process::memory_mib(daemon.pid(), "VmRSS").unwrap_or(f64::NAN);
    // A program with the same HTTP client that does nothing else.
    let server = crate::server::Server::start(1, 0)?;
    let bare = process::run(&mut process::this(&["client", "calls", &server.url, "1000", "16"])?)?;
    report.figure("resident memory with 100 monitors, idle", rss, "MiB", Some(30.0), &format!("bare reqwest loop: {}", shown(bare.peak_mib, "MiB")));
    Ok(())
}

fn thousand(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let site = idle_site(1_000)?;
    let mut starts = Vec::new();
    for _ in 0..size.pick(5, 2) {
        let (daemon, took) = site.daemon()?;
        starts.push(took.as_secs_f64() * 1000.0);
        drop(daemon);
    }
    let read = Instant::now();
    let mut bytes = 0;
    for entry in fs::read_dir(site.path().join("monitors"))? {
        bytes += fs::read(entry?.path())?.len();
    }
    let reference = format!("reading the {} KiB of files: {}", bytes / 1024, shown(read.elapsed().as_secs_f64() * 1000.0, "ms"));
    report.figure("start with 1,000 monitors until ready", median(starts.clone()), "ms", Some(500.0), &reference);

    let (daemon, _) = site.daemon()?;
    std::thread::sleep(Duration::from_secs(1));
    let mut changes = Vec::new();
    for round in 0..size.pick(5, 2) {
        let before = reloads(&site)?;
        let changed = Instant::now();
        site.monitor("m00500", &idle_monitor(500, &format!("changed {round}")))?;
        while reloads(&site)? <= before {
            ensure!(changed.elapsed() < Duration::from_secs(10), "the change was not taken up within 10 s");
            std::thread::sleep(Duration::from_millis(5));
        }
        changes.push(changed.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(Duration::from_millis(500));
    }
    let metrics = site.get("metrics")?;
    let ran = metrics.lines().filter(|line| line.starts_with("assayd_runs_total{")).count();
    ensure!(ran == 0, "{ran} monitors ran because one was changed");
    drop(daemon);
    report.figure("one changed file among 1,000 takes effect", median(changes), "ms", Some(1000.0), &format!("a restart: {}", shown(median(starts), "ms")));
    Ok(())
}

/// Reloads so far, by /metrics.
fn reloads(site: &Site) -> anyhow::Result<f64> {
    let metrics = site.get("metrics")?;
    let counts = metrics.lines().filter(|line| line.starts_with("assayd_config_reloads_total"));
    Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

fn ten_thousand(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let monitors = size.pick(10_000, 1_000);
    let site = idle_site(monitors)?;
    let (daemon, _) = site.daemon()?;
    std::thread::sleep(Duration::from_secs(size.pick(5, 2)));
    let over = Duration::from_secs(size.pick(30, 5));
    let ours = idle_cpu(&daemon, over)?;
    let rss = process::memory_mib(daemon.pid(), "VmRSS").unwrap_or(f64::NAN);
    drop(daemon);
    let (reference, _) = Background::start_and_read(&mut process::this(&["scheduler", "idle", &monitors.to_string()])?)?;
    let theirs = idle_cpu(&reference, over)?;
    let reference = format!("tokio-cron-scheduler with as many jobs, nothing else: {}; resident here {}", shown(theirs, "%"), shown(rss, "MiB"));
    report.figure(&format!("CPU of {monitors} idle monitors, of one core"), ours, "%", Some(1.0), &reference);
    Ok(())
}

/// Monitors that do run: each slot is a run over a file with one line, which is new the first time and known from then on.
fn slots(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let (monitors, every) = (size.pick(10_000, 1_000), size.pick(60, 10));
    for (jitter, spread, limit) in [(every - 1, "spread over the interval", 10.0), (0, "all at once", 50.0)] {
        let site = Site::new(NOWHERE, 16)?;
        fs::write(site.path().join("answers.jsonl"), "{\"id\": \"a\", \"output\": \"Yes.\"}\n")?;
        for number in 0..monitors {
            let name = format!("m{number:05}");
            let monitor = format!(
                "schedule: {{ every: {every}s, jitter: {jitter}s, catch_up: none }}\nsource: {{ type: file, path: answers.jsonl, settle: 0s }}\n\
                 metrics: [ {{ name: brief, type: length, max: 400 }} ]\n"
            );
            site.monitor(&name, &monitor)?;
        }
        let (daemon, _) = site.daemon()?;
        let before = process::cpu(daemon.pid())?;
        // Two rounds for each, and time to finish them.
        std::thread::sleep(Duration::from_secs(2 * every + 5));
        let metrics = site.get("metrics")?;
        let cpu = process::cpu(daemon.pid())?.saturating_sub(before).as_secs_f64() * 1000.0;
        let buckets: Vec<(f64, f64)> = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("assayd_schedule_lateness_seconds_bucket{le=\"")?.split_once("\"} "))
            .filter_map(|(bound, n)| Some((bound.parse().ok()?, n.parse().ok()?)))
            .collect();
        let fired = buckets.last().map_or(0.0, |(_, n)| *n);
        ensure!(fired >= 2.0 * f64::from(monitors), "{fired} slots of {monitors} monitors fired in two rounds");
        ensure!(!metrics.contains("status=\"missed\""), "slots were missed");
        let p99 = buckets.iter().find(|(_, n)| *n >= 0.99 * fired).map_or(f64::NAN, |(bound, _)| bound * 1000.0);
        let reference = format!("bound of the bucket; {fired} slots, none missed; CPU a run: {}", shown(cpu / fired, "ms"));
        report.figure(&format!("the same in the daemon, every slot a run, {monitors} monitors {spread}"), p99, "ms", Some(limit), &reference);
    }
    Ok(())
}
