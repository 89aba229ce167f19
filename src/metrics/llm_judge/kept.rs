//! A judge whose prompt Langfuse keeps: read once a run, so that all of a run is judged by one version.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;

use super::{DataType, Judge, Judgement, Metric, MetricCx, form::Form};
use crate::{
    metrics::{Pinned, Prompts, waiting::Waiting},
    model::{Outcome, PromptRef, PromptUse, PromptVersion, Wait},
};

pub(super) struct Kept {
    /// Without its form.
    pub judge: Judge,
    pub prompt: PromptRef,
    pub prompts: Arc<dyn Prompts>,
    /// Expressions by the names that the prompt uses beside assayd's own.
    pub variables: BTreeMap<String, String>,
    /// What decides the verdict beside the prompt.
    pub revision: String,
}

impl Kept {
    /// The judge by today's version, or why there is none.
    async fn read(&self) -> Result<(Judge, Arc<PromptVersion>), String> {
        let kept = self.prompts.current(&self.prompt).await?;
        let form = Form::kept(&kept.prompt, &self.variables);
        let form = form.map_err(|fault| format!("the prompt `{}` (v{}) cannot be asked: {fault}", self.prompt, kept.version))?;
        Ok((Judge { form: Arc::new(form), ..self.judge.clone() }, kept))
    }
}

#[async_trait]
impl Metric for Kept {
    async fn judge(&self, cx: &MetricCx<'_>) -> Judgement {
        match self.read().await {
            Ok((judge, _)) => judge.judge(cx).await,
            Err(reason) => Outcome::Deferred { reason, wait: Wait::Judge }.into(),
        }
    }

    async fn pin(&self) -> Option<Pinned> {
        Some(match self.read().await {
            Ok((judge, kept)) => Pinned {
                metric: Arc::new(judge),
                revision: format!("judge:{}{}", serde_json::to_string(&kept.prompt).unwrap_or_default(), self.revision),
                prompt: Some(PromptUse { name: self.prompt.name.clone(), version: kept.version }),
            },
            Err(reason) => Pinned { metric: Arc::new(Waiting { reason, data_type: self.data_type() }), revision: self.revision.clone(), prompt: None },
        })
    }

    fn data_type(&self) -> DataType {
        self.judge.data_type()
    }
}
