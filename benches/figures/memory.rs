//! A run over very many traces: pages are streamed, so memory does not grow with them.

use anyhow::ensure;

use crate::{
    Size, process,
    report::{Report, shown},
    server::Server,
    site::Site,
};

pub fn figures(size: Size, report: &mut Report) -> anyhow::Result<()> {
    let traces = size.pick(100_000, 10_000);
    let server = Server::start(traces, 0)?;
    let site = Site::new(&server.url, 16)?;
    let monitor = format!(
        "name: many\nschedule: {{ every: 1h }}\nsource: {{ type: langfuse, settle: 1m, lookback: 24h, limit: {traces} }}\n\
         metrics:\n  - {{ name: answered, type: regex, pattern: \"(?i)i (can't|cannot|am unable)\", invert: true }}\n  - {{ name: brief, type: length, max: 4000 }}\n"
    );
    site.monitor("many", &monitor)?;
    let (used, run) = site.once("many")?;
    ensure!(run.counts.scored == traces && run.counts.fetched == traces, "{traces} traces: {} fetched, {} scored", run.counts.fetched, run.counts.scored);
    let collected = process::run(&mut process::this(&["client", "collect", &server.url])?)?;
    ensure!(collected.stdout.trim() == traces.to_string(), "the reference read {} traces", collected.stdout.trim());
    let reference =
        format!("a script that collects the pages: {}; this run took {} of CPU", shown(collected.peak_mib, "MiB"), shown(used.cpu.as_secs_f64(), "s"));
    report.figure(&format!("peak memory of a run over {traces} traces, two heuristics"), used.peak_mib, "MiB", Some(100.0), &reference);
    Ok(())
}
