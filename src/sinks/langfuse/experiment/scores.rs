//! Scores of an experiment: on the traces that we made, and the means of the run.

use std::collections::{BTreeSet, HashSet};

use serde_json::json;

use super::{ENVIRONMENT, Experiment, Place, Run, hash};
use crate::sinks::{
    RowError, SinkError,
    langfuse::{Body, Sender, body},
    wanted,
};

/// Runs remembered at most.
const RUNS: usize = 1_000;

impl Experiment {
    /// Scores on the traces that we made; those of Langfuse's own traces have them anyway.
    pub(super) async fn score_items(&self, sender: &Sender, some: &[(usize, &Place<'_>)], answers: &mut [Result<(), RowError>]) -> Result<(), SinkError> {
        let (mut at, mut bodies) = (Vec::new(), Vec::new());
        for (row, place) in some {
            let Some(spans) = &place.spans else { continue };
            match body(place.delivery) {
                Ok(body) => {
                    let id = format!("{}-{}", body.id, &hash(&[&self.config.dataset, &place.run_name])[..12]);
                    at.push(*row);
                    bodies.push(Body {
                        id,
                        trace_id: Some(place.trace_id.clone()),
                        observation_id: Some(spans.task.clone()),
                        environment: Some(ENVIRONMENT.to_owned()),
                        ..body
                    });
                }
                Err(error) => answers[*row] = Err(error),
            }
        }
        for (row, answer) in at.into_iter().zip(sender.send(&bodies).await?) {
            if let Err(error) = answer {
                answers[row] = Err(error);
            }
        }
        Ok(())
    }

    /// The mean of every metric, of the runs that these rows belong to.
    pub(super) async fn score_runs(&self, sender: &Sender, project: &str, some: &[(usize, &Place<'_>)]) -> Result<(), SinkError> {
        let names: BTreeSet<&str> = some.iter().map(|(_, place)| place.run_name.as_str()).collect();
        for name in names {
            let Run { id: Some(id), run_ids, .. } = self.with_run(name, |run| Run { items: HashSet::new(), ..run.clone() }) else { continue };
            let group = hash(&[project, &self.config.dataset, name]);
            let later = |message: String| SinkError { message, retry_after: None, transient: true };
            let means = self.runs.means(&group, &run_ids).await.map_err(later)?;
            let published = means.metrics.iter().filter(|mean| wanted(&self.metrics, &mean.metric));
            let bodies: Vec<Body> = published
                .map(|mean| Body {
                    id: format!("assayd-{}", hash(&["run", &self.config.dataset, name, &mean.metric])),
                    trace_id: None,
                    observation_id: None,
                    dataset_run_id: Some(id.clone()),
                    name: mean.metric.clone(),
                    value: json!(mean.mean),
                    data_type: "NUMERIC".to_owned(),
                    comment: format!("mean of {} scores", mean.n),
                    metadata: json!({ "n": mean.n }),
                    environment: None,
                    timestamp: means.since.to_string(),
                })
                .collect();
            for answer in sender.send(&bodies).await? {
                match answer {
                    Ok(()) => {}
                    // The items' scores are there; a mean that is refused is nobody's row.
                    Err(RowError::Dead(error)) => tracing::warn!(experiment = name, %error, "the mean of an experiment was refused"),
                    Err(RowError::Retry(error)) => return Err(later(error)),
                }
            }
        }
        let mut sent = self.sent();
        if sent.runs.len() > RUNS {
            // Read anew, or made anew under the same ids, when they are needed.
            sent.runs.clear();
        }
        Ok(())
    }
}
