//! Prints figures as they come, as a Markdown table that can be pasted into the README.

use std::io::Write;

/// What a figure may be at most. `None`: told, not judged.
pub type Limit = Option<f64>;

#[derive(Debug)]
pub struct Report {
    within: usize,
    over: Vec<String>,
}

impl Report {
    pub fn start() -> Self {
        println!("| figure | measured | at most | | reference, measured in the same run |");
        println!("| --- | --- | --- | --- | --- |");
        Self { within: 0, over: Vec::new() }
    }

    pub fn figure(&mut self, name: &str, value: f64, unit: &str, limit: Limit, reference: &str) {
        let (bound, verdict) = match limit {
            None => (String::new(), ""),
            Some(limit) if value <= limit => {
                self.within += 1;
                (shown(limit, unit), "ok")
            }
            Some(limit) => {
                self.over.push(name.to_owned());
                (shown(limit, unit), "**over**")
            }
        };
        println!("| {name} | {} | {bound} | {verdict} | {reference} |", shown(value, unit));
        let _ = std::io::stdout().flush();
    }

    /// A figure that could not be measured counts as one that does not hold.
    pub fn broken(&mut self, name: &str, error: &anyhow::Error) {
        println!("| {name} | not measured | | **over** | {error:#} |");
        self.over.push(name.to_owned());
    }

    /// True when every figure is within its limit.
    pub fn finish(&self) -> bool {
        println!(
            "\n{} within their limits, {} over{}",
            self.within,
            self.over.len(),
            self.over.iter().map(|name| format!("\n  over: {name}")).collect::<String>()
        );
        self.over.is_empty()
    }
}

/// Three digits that count.
pub fn shown(value: f64, unit: &str) -> String {
    let digits = if value == 0.0 { 0 } else { (2 - value.abs().log10().floor() as i32).clamp(0, 4) as usize };
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    if unit.is_empty() { text.to_owned() } else { format!("{text} {unit}") }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The value that a share of the sorted ones do not exceed.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(at.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
