//! In the place of a metric that a run has nothing to judge with: its items come back.

use async_trait::async_trait;

use super::{DataType, Judgement, Metric, MetricCx};
use crate::model::{Outcome, Wait};

pub(super) struct Waiting {
    pub reason: String,
    pub data_type: DataType,
}

#[async_trait]
impl Metric for Waiting {
    async fn judge(&self, _: &MetricCx<'_>) -> Judgement {
        Outcome::Deferred { reason: self.reason.clone(), wait: Wait::Judge }.into()
    }

    fn data_type(&self) -> DataType {
        self.data_type
    }
}
