//! Plain data that every other folder speaks in: traces, cases, outcomes, scores, decisions, runs, alerts.
//!
//! Nothing here does I/O, reads a clock or knows a setting. What a user wrote lives in `config`, stored rows
//! in `store`, wire JSON in the plug-in that speaks it; those convert to and from these types.

mod alert;
mod backfill;
mod budget;
mod ids;
mod item;
mod outbox;
mod outcome;
mod prompt;
mod run;
mod trace;

pub use alert::{
    AlertEvent, AlertEventKind, AlertState, Coverage, DayTally, Group, Judged, MeanOf, News, PastJudgement, PastRun, Route, RunMean, Severity, Tally,
    WorstItem, alert_of_value, alertname,
};
pub use backfill::{Backfill, BackfillReport, CostBy, WouldJudge};
pub use budget::{Budget, Per, nano_usd, usd};
pub use ids::{BodyKey, GivenHash, ItemKey, content_hash, dataset_id, run_id, score_id, trace_id};
pub use item::{About, Item, MetricAbout};
pub use outbox::OutboxChange;
pub use outcome::{Decision, ItemCounts, Outcome, Score, Usage, Wait};
pub use prompt::{ChatTurn, PromptAt, PromptRef, PromptText, PromptUse, PromptVersion};
pub use run::{AlertLine, Changes, Gate, GateAnswer, GateReport, MetricSummary, PublishedCounts, RunReport, RunStatus, Trigger};
pub use trace::{Case, Observation, Trace};
