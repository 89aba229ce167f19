//! A run from end to end: fetch from Langfuse, ledger, one model call an item, record, publish to Langfuse.

use anyhow::ensure;

use crate::{
    Size, process,
    report::{Report, median, shown},
    server::Server,
    site::Site,
};

pub const CONCURRENCY: usize = 100;

fn monitor(items: u64) -> String {
    format!(
        r"
name: judged
schedule: {{ every: 1h }}
source: {{ type: langfuse, settle: 1m, lookback: 24h, limit: {items} }}
metrics:
  - name: helpful
    type: judge
    model: judge
    prompt: |
      Rate how helpful the answer is.
      Question: {{{{ input }}}}
      Answer: {{{{ output }}}}
    output: {{ kind: score, min: 1, max: 5 }}
    threshold: 0.5
    max_tokens: 300
evaluation: {{ concurrency: {CONCURRENCY} }}
publish: [ {{ type: langfuse }} ]
"
    )
}

fn judged(server: &Server, items: u64) -> anyhow::Result<process::Used> {
    run(&Site::new(&server.url, CONCURRENCY)?, server, items)
}

/// One run in a new site, checked: every item judged with one call and published once.
pub fn run(site: &Site, server: &Server, items: u64) -> anyhow::Result<process::Used> {
    site.monitor("judged", &monitor(items))?;
    server.counts()?;
    let (used, report) = site.once("judged")?;
    let (counts, delivered) = (server.counts()?, report.published.values().map(|sink| sink.delivered).sum::<u64>());
    ensure!(
        [report.counts.scored, counts.calls, counts.scores, delivered] == [items; 4],
        "{items} items: {} scored, {} calls, {} scores at the server, {delivered} delivered",
        report.counts.scored,
        counts.calls,
        counts.scores
    );
    Ok(used)
}

pub fn bare(server: &Server, items: u64) -> anyhow::Result<process::Used> {
    process::run(&mut process::this(&["client", "calls", &server.url, &items.to_string(), &CONCURRENCY.to_string()])?)
}

pub fn cpu(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let items = size.pick(5_000, 1_000);
    let server = Server::start(items, 0)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(3, 1) {
        ours.push(judged(&server, items)?.cpu.as_secs_f64() * 1000.0 / items as f64);
        theirs.push(bare(&server, items)?.cpu.as_secs_f64() * 1000.0 / items as f64);
    }
    let reference = format!("bare reqwest loop, same calls, keeps nothing: {}", shown(median(theirs), "ms"));
    report.figure(&format!("CPU a judged item, {items} items, everything included"), median(ours), "ms", Some(0.4), &reference);
    Ok(())
}

pub fn wall(size: Size, report: &mut Report) -> anyhow::Result<()> {
    const LATENCY_MS: u64 = 200;
    let items = size.pick(3_000, 1_000);
    let ideal = (items / CONCURRENCY as u64 * LATENCY_MS) as f64 / 1000.0;
    let server = Server::start(items, LATENCY_MS)?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..size.pick(3, 1) {
        ours.push(judged(&server, items)?.wall.as_secs_f64() / ideal);
        theirs.push(bare(&server, items)?.wall.as_secs_f64() / ideal);
    }
    let reference = format!("ideal {}; bare reqwest loop {}", shown(ideal, "s"), shown(median(theirs), ""));
    report.figure(
        &format!("time against the ideal, {items} items, {LATENCY_MS} ms a call, concurrency {CONCURRENCY}"),
        median(ours),
        "",
        Some(1.05),
        &reference,
    );
    Ok(())
}
