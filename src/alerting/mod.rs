//! When to tell people. Pure: (last state, what was measured, now) -> (next state, decision with a named reason).
//! No clock, no store, no message text beyond one sentence; the pipeline measures, stores and sends.

mod builtin;
mod condition;
mod machine;

pub use condition::Condition;
