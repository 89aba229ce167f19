//! Not written yet.

#[derive(Debug, Clone)]
pub struct ScheduleSpec;
