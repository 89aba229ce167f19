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
    for (by, value) in &life.values {
        let _ = writeln!(out, "  by         {} = {}", one_line(by, 100), one_line(value, 100));
    }
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
            let _ = writeln!(out, "    judge  {}/{}{cost}", one_line(score.provider.as_deref().unwrap_or("-"), 100), one_line(model, 100));
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_judge_of_any_name_is_one_short_line() {
        let score = json!({
            "score_id": "s", "run_id": "r", "monitor": "m", "metric": "m", "metric_revision": "r", "item_id": "i", "item_timestamp": Timestamp::UNIX_EPOCH,
            "outcome": "scored", "value": 1.0, "reason": "", "provider": "p\n", "model": "m\u{1b}[31m".repeat(99), "created_at": Timestamp::UNIX_EPOCH,
        });
        let life = ItemLife {
            item_id: "i".to_owned(),
            item_us: 0,
            decision: "scored".to_owned(),
            reason: String::new(),
            run_id: "r".to_owned(),
            attempts: 1,
            seen_us: 0,
            decided_us: 0,
            events: Vec::new(),
            scores: vec![serde_json::from_value(score).unwrap()],
            answers: vec![None],
            values: Vec::new(),
            deliveries: Vec::new(),
        };
        let told = render(&life);
        let judge = told.lines().find(|line| line.contains("judge  p/m")).unwrap();
        assert!(judge.chars().count() < 130 && !told.contains('\u{1b}'), "{told}");
    }
}
