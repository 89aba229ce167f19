//! Not written yet.

/// `mean < 0.8`
#[derive(Debug, Clone)]
pub struct Condition;
