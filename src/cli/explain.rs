use jiff::Timestamp;

use super::{Failure, Overrides, block_on, print, settings_without_keys};
use crate::{
    store::{ItemLife, Store},
    util::text::one_line,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    item: String,
}

pub(super) fn explain(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let lives = block_on(async {
        let store = Store::open_to_read(&settings.state).await?;
        Ok(store.item_life(&arguments.monitor, &arguments.item).await?)
    })?;
    if lives.is_empty() {
        eprintln!(
            "assayd: monitor `{}` knows nothing of an item `{}`: it was not fetched, or is no longer remembered",
            one_line(&arguments.monitor, 64),
            one_line(&arguments.item, 128)
        );
        return Err(Failure::Problems);
    }
    print(&lives.iter().map(render).collect::<String>())
}

fn render(life: &ItemLife) -> String {
    use std::fmt::Write;
    let time = |us: i64| Timestamp::from_microsecond(us).unwrap_or_default();
    let mut out = String::new();
    let _ = writeln!(out, "item {}", one_line(&life.item_id, 128));
    let _ = writeln!(out, "  happened   {}", time(life.item_us));
    let _ = writeln!(out, "  first seen {}", time(life.seen_us));
    for (at, decision, reason, run) in &life.events {
        let _ = writeln!(out, "  {decision:<10} {}  {} (run {run})", time(*at), one_line(reason, 300));
    }
    let _ = writeln!(out, "  decision   {}  since {}", life.decision, time(life.decided_us));
    let _ = writeln!(out, "             {} (run {}, attempts {})", one_line(&life.reason, 300), life.run_id, life.attempts);
    for (score, answer) in life.scores.iter().zip(&life.answers) {
        let figure = match (score.value, &score.label) {
            (Some(value), Some(label)) => format!("{value:.3} ({})", one_line(label, 60)),
            (Some(value), None) => format!("{value:.3}"),
            (None, _) => String::new(),
        };
        let passed = match score.passed {
            Some(true) => ", passed",
            Some(false) => ", not passed",
            None => "",
        };
        let _ = writeln!(out, "  metric {}: {} {figure}{passed}", score.metric, score.outcome);
        let _ = writeln!(out, "    when   {} (run {}, revision {})", score.created_at, score.run_id, score.metric_revision);
        let _ = writeln!(out, "    reason {}", one_line(&score.reason, 400));
        if let Some(answer) = answer {
            let _ = writeln!(out, "    answer {}", one_line(answer, 2000));
        }
        if let Some(model) = &score.model {
            let cost = score.cost_usd.map(|cost| format!(", {cost:.6} USD")).unwrap_or_default();
            let _ = writeln!(out, "    judge  {}/{model}{cost}", score.provider.as_deref().unwrap_or("-"));
        }
        for (_, queue, state, delivered, error) in life.deliveries.iter().filter(|(of, ..)| *of == score.score_id) {
            let what = match (state, delivered) {
                (1, Some(at)) => format!("delivered {}", time(*at)),
                (2, _) => format!("dead: {}", one_line(error.as_deref().unwrap_or("-"), 200)),
                _ => format!("waiting{}", error.as_deref().map(|error| format!(": {}", one_line(error, 200))).unwrap_or_default()),
            };
            let _ = writeln!(out, "    sink   {queue}: {what}");
        }
    }
    out
}
