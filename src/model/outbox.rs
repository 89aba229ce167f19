use serde::{Deserialize, Serialize};

/// What a person does to rows of the outbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OutboxChange {
    /// Dead rows are due again: of one queue, or of all.
    Retry { queue: Option<String> },
    /// Dead rows of a queue are forgotten, and with `waiting` those that wait too.
    Drop { queue: String, waiting: bool },
}
