//! The gateway with all of it on: limits and a budget that do not bind, `record`, and answers that are kept.

use std::{thread, time::Duration};

use anyhow::ensure;

use crate::{
    Size, judge,
    load::{Done, Load},
    process,
    report::{Report, median, shown},
    server::{self, Server},
    site::Site,
};

const CONNECTIONS: usize = 16;
/// A second. What is added to an answer shows only where nobody queues: with 16 connections that are never idle, each
/// waits for 16 others at whatever a machine can do, 3.2 ms at 5,000 a second.
const CALM: f64 = 1_000.0;
/// A minute: not reached.
const MANY: u32 = 10_000_000;

#[derive(Debug, Clone, Copy)]
struct Settings {
    /// Of the profile.
    rpm: u32,
    /// Budget and `record`, beside the limits.
    all: bool,
    /// Memory for answers in MiB, where they are kept.
    cache: Option<u32>,
}

impl Settings {
    fn site(self, server: &str) -> anyhow::Result<Site> {
        Site::of(&self.text(server))
    }

    fn text(self, server: &str) -> String {
        let (rpm, concurrency) = (self.rpm, judge::CONCURRENCY);
        let limits = |rpm: u32| format!("limits: {{ rpm: {rpm}, tpm: 4000000000, concurrency: {concurrency} }}");
        format!(
            "concurrency: {{ runs: 16, judge_calls: {concurrency} }}\n\
             connections:\n  langfuse:\n    default: {{ base_url: \"{server}\", public_key: pk-lf-bench, secret_key: sk-lf-bench }}\n\
             providers:\n  openai: {{ type: openai, api_key: sk-bench, base_url: \"{server}/v1\", {everywhere} }}\n\
             prices: {{ gpt-4o-mini: {{ input_cost_per_token: 0.00000015, output_cost_per_token: 0.0000006 }} }}\n\
             {budget}\n\
             hooks: {{ full: {{ after: [record] }} }}\n\
             cache: {{ url: sqlite, memory_mb: {memory} }}\n\
             profiles:\n  judge: {{ provider: openai, model: gpt-4o-mini, {limits}{hooks}{keep} }}\n",
            everywhere = limits(MANY),
            memory = self.cache.unwrap_or(8),
            limits = limits(rpm),
            budget = if self.all { "budget: { usd: 1000000, per: month }" } else { "" },
            hooks = if self.all { ", hooks: full" } else { "" },
            keep = if self.cache.is_some() { ", cache: { ttl: 24h }" } else { "" },
        )
    }
}

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    route(size, report)?;
    kept(size, report)?;
    judged(size, report)
}

fn long(number: usize) -> String {
    format!("Rate how helpful the answer is.\nQuestion {number}\nAnswer: {}", server::OUTPUT)
}

/// Each number of a round once, in no order that a disk likes.
fn short(number: usize) -> String {
    format!("Is {} a prime?", number * 7_919 % 100_000)
}

/// One value of each round.
#[derive(Default)]
struct Values(Vec<f64>);

impl Values {
    fn median(&self) -> f64 {
        median(self.0.clone())
    }

    fn told(&self, unit: &str) -> String {
        shown(self.median(), unit)
    }
}

#[derive(Default)]
struct Side {
    p50: Values,
    p99: Values,
    per_second: Values,
    busy_p50: Values,
    busy_p99: Values,
}

impl Side {
    fn add(&mut self, calm: &Done, busy: &Done) {
        self.p50.0.push(calm.percentile(0.50));
        self.p99.0.push(calm.percentile(0.99));
        self.per_second.0.push(busy.per_second());
        self.busy_p50.0.push(busy.percentile(0.50));
        self.busy_p99.0.push(busy.percentile(0.99));
    }
}

fn route(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let server = Server::start(1, 0)?;
    let site = Settings { rpm: MANY, all: true, cache: None }.site(&server.url)?;
    let (daemon, _) = site.daemon()?;
    let (calm, busy) = (size.pick(4_000, 1_000), size.pick(20_000, 4_000));
    let calm = Load { connections: CONNECTIONS, requests: calm, rate: Some(CALM), prompt: long };
    let busy = Load { requests: busy, rate: None, ..calm };
    busy.send(&site.url(), "judge")?;

    let (mut ours, mut theirs, mut cpus) = (Side::default(), Side::default(), Values::default());
    let rounds = size.pick(5, 1);
    for _ in 0..rounds {
        theirs.add(&calm.send(&server.url, "gpt-4o-mini")?, &busy.send(&server.url, "gpt-4o-mini")?);
        let quiet = calm.send(&site.url(), "judge")?;
        server.counts()?;
        let before = process::cpu(daemon.pid())?;
        let done = busy.send(&site.url(), "judge")?;
        // What is recorded is written behind the calls.
        thread::sleep(Duration::from_secs(1));
        cpus.0.push(process::cpu(daemon.pid())?.saturating_sub(before).as_secs_f64() * 1000.0 / busy.requests as f64);
        let asked = server.counts()?.calls;
        ensure!(asked == busy.requests as u64, "{asked} calls came of {} requests", busy.requests);
        ours.add(&quiet, &done);
    }
    let dropped = counted(&site, "llm_hook_events_dropped_total")?;
    let rss = process::memory_mib(daemon.pid(), "VmHWM").unwrap_or(f64::NAN);

    let added = |ours: &Values, theirs: &Values| median(ours.0.iter().zip(&theirs.0).map(|(ours, theirs)| ours - theirs).collect());
    for (share, ours, theirs, limit) in [("p50", &ours.p50, &theirs.p50, 0.3), ("p99", &ours.p99, &theirs.p99, 2.0)] {
        let reference = format!("straight to the model {}, through the gateway {}", theirs.told("ms"), ours.told("ms"));
        let name = format!("added to a chat completion at {share}, {CONNECTIONS} connections, {CALM} requests/s");
        report.figure(&name, added(ours, theirs), "ms", Some(limit), &reference);
    }
    let reference = format!(
        "{} requests/s (p50 {}, p99 {}); straight to the model {} (p50 {}, p99 {}); all share the cores",
        ours.per_second.told(""),
        ours.busy_p50.told("ms"),
        ours.busy_p99.told("ms"),
        theirs.per_second.told(""),
        theirs.busy_p50.told("ms"),
        theirs.busy_p99.told("ms"),
    );
    let each = 1e6 / ours.per_second.median();
    report.figure(&format!("time a chat completion, {CONNECTIONS} connections never idle; 200 µs are 5,000 requests/s"), each, "µs", Some(200.0), &reference);
    let calls = process::run(&mut process::this(&["client", "calls", &server.url, &busy.requests.to_string(), &CONNECTIONS.to_string()])?)?;
    let bare = calls.cpu.as_secs_f64() * 1000.0 / busy.requests as f64;
    let reference = format!("bare reqwest loop, same calls: {}; peak memory {}, {dropped} records dropped", shown(bare, "ms"), shown(rss, "MiB"));
    report.figure("CPU a chat completion, `record` and all writing included", cpus.median(), "ms", Some(0.15), &reference);
    Ok(())
}

/// A counter of /metrics, its labels added up.
fn counted(site: &Site, name: &str) -> anyhow::Result<f64> {
    let metrics = site.get("metrics")?;
    Ok(metrics
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .fold(0.0, |sum, value| sum + value))
}

fn kept(size: Size, report: &mut Report) -> anyhow::Result<()> {
    const SMALL: Settings = Settings { rpm: MANY, all: true, cache: Some(8) };
    const LARGE: Settings = Settings { cache: Some(64), ..SMALL };
    let answers = size.pick(100_000, 10_000);
    let server = Server::start(1, 0)?;
    let site = SMALL.site(&server.url)?;
    let all = Load { connections: CONNECTIONS, requests: answers, rate: None, prompt: short };
    let (daemon, _) = site.daemon()?;
    all.send(&site.url(), "judge")?;
    let asked = server.counts()?.calls;
    ensure!(asked == answers as u64, "{asked} calls came of {answers} questions");
    // The daemon is killed, and what it gathered is written every ten seconds.
    std::thread::sleep(std::time::Duration::from_secs(11));
    drop(daemon);

    // The process is a new one: each of these is read from the file.
    let few = Load { connections: 1, requests: answers / 20, ..all };
    let (daemon, _) = site.daemon()?;
    let ours = few.send(&site.url(), "judge")?;
    let hits = server.counts()?.calls;
    ensure!(hits == 0, "{hits} answers were not kept");
    let theirs = few.send(&server.url, "gpt-4o-mini")?;
    for share in [0.50, 0.99] {
        let reference = format!("straight to the model, which answers at once: {}", shown(theirs.percentile(share), "ms"));
        let name = format!("a hit on disk among {answers} kept answers, p{:.0}, one connection", share * 100.0);
        report.figure(&name, ours.percentile(share), "ms", Some(1.0), &reference);
    }
    drop(daemon);

    let small = memory(&site, &server, all)?;
    site.settings(&LARGE.text(&server.url))?;
    let large = memory(&site, &server, all)?;
    let reference = format!("`memory_mb: 64`, which holds them all: {}", shown(large, "MiB"));
    report.figure(&format!("peak memory of reading {answers} kept answers, `memory_mb: 8`"), small, "MiB", None, &reference);
    Ok(())
}

/// Peak of a new process that gives every answer from what is kept.
fn memory(site: &Site, server: &Server, all: Load) -> anyhow::Result<f64> {
    let (daemon, _) = site.daemon()?;
    server.counts()?;
    all.send(&site.url(), "judge")?;
    let hits = server.counts()?.calls;
    ensure!(hits == 0, "{hits} answers were not kept");
    Ok(process::memory_mib(daemon.pid(), "VmHWM").unwrap_or(f64::NAN))
}

fn judged(size: Size, report: &mut Report) -> anyhow::Result<()> {
    const RPM: u32 = 12_000;
    const ALL: Settings = Settings { rpm: RPM, all: true, cache: Some(8) };
    let items = size.pick(2_000, 600);
    // A second's share goes at once.
    let allowed = items as f64 / f64::from(RPM) * 60.0 - 1.0;
    let server = Server::start(items, 0)?;
    let each = |used: &process::Used| used.cpu.as_secs_f64() * 1000.0 / items as f64;
    let judged = |settings: Settings| judge::run(&settings.site(&server.url)?, &server, items);
    let (mut free, mut paced, mut wall, mut bare) = (Values::default(), Values::default(), Values::default(), Values::default());
    for _ in 0..size.pick(3, 1) {
        free.0.push(each(&judged(Settings { rpm: MANY, ..ALL })?));
        let used = judged(ALL)?;
        paced.0.push(each(&used));
        wall.0.push(used.wall.as_secs_f64() / allowed);
        bare.0.push(each(&judge::bare(&server, items)?));
    }
    // A trickle costs more than a flood: nothing shares a wake-up, or a commit.
    let plain_free = each(&judged(Settings { rpm: MANY, all: false, cache: None })?);
    let plain_paced = each(&judged(Settings { all: false, cache: None, ..ALL })?);

    let name = |pace: &str| format!("CPU a judged item, {items} items, limits, budget, cache and `record` on, {pace}");
    let reference = format!("limits alone: {}; bare reqwest loop, keeps nothing: {}", shown(plain_free, "ms"), bare.told("ms"));
    report.figure(&name("limits not reached"), free.median(), "ms", Some(0.4), &reference);
    let reference = format!("limits alone: {}", shown(plain_paced, "ms"));
    report.figure(&name(&format!("at {RPM} requests a minute")), paced.median(), "ms", Some(0.4), &reference);
    report.figure(
        &format!("time against what {RPM} requests a minute allow, {items} items"),
        wall.median(),
        "",
        Some(1.05),
        &format!("allowed {}", shown(allowed, "s")),
    );
    Ok(())
}
