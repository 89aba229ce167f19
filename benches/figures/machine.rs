//! What the figures were measured on.

use std::fs::read_to_string;

pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpuinfo = read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "Model")).unwrap_or("unknown CPU");
    let memory = read_to_string("/proc/meminfo").unwrap_or_default();
    let gib = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) / 1024.0 / 1024.0;
    let kernel = read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let load = read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let at = jiff::Timestamp::now();
    format!("{cores} cores, {cpu}, {gib:.0} GiB, Linux {}, load {load}, assayd {}, {at:.0}", kernel.trim(), env!("CARGO_PKG_VERSION"))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix(':')).map(str::trim)
}
