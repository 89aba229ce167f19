//! What is known to be in the runs of a project's datasets. Langfuse v3 numbers the links of a run itself, so that one that is
//! made twice is there twice: whoever links asks here first, and all who publish to a run ask the same.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// The links of one run.
#[derive(Debug, Default)]
pub struct Links {
    /// Langfuse's id of the run.
    pub run_id: Option<String>,
    /// Dataset items in it.
    pub items: HashSet<String>,
    /// Nothing can be in the run that is not in `items`. False until the run was read to its end, and again as soon as
    /// something was sent whose answer is not known.
    pub complete: bool,
}

/// Runs beyond which those that nobody uses are forgotten, and read anew when they are needed.
const REMEMBERED: usize = 1_000;

/// Dataset and name of a run.
type Key = (String, String);

/// By run. Cheap to clone; the clones are one.
#[derive(Clone, Default)]
pub(super) struct LinksOf(Arc<Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Links>>>>>);

impl fmt::Debug for LinksOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinksOf").finish_non_exhaustive()
    }
}

impl LinksOf {
    pub(super) fn of(&self, dataset_id: &str, run_name: &str) -> Arc<tokio::sync::Mutex<Links>> {
        // Whole after every statement.
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() > REMEMBERED {
            runs.retain(|_, links| Arc::strong_count(links) > 1);
        }
        Arc::clone(runs.entry((dataset_id.to_owned(), run_name.to_owned())).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_somebody_links_to_is_not_forgotten() {
        let links = LinksOf::default();
        let held = links.of("ds", "run");
        for n in 0..REMEMBERED + 10 {
            links.of("ds", &n.to_string());
        }
        assert!(Arc::ptr_eq(&held, &links.clone().of("ds", "run")));
        assert!(links.0.lock().unwrap().len() < 20);
    }
}
