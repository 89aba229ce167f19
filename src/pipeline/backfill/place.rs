//! What a backfill makes of an item, by what the ledger has of it. Pure.

use super::Standing;

/// Whose an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The monitor's own runs take it, or try it again.
    OfRuns,
    /// It was decided not to judge it.
    LeftOut,
    /// It is scored, by whichever revision.
    Scored,
    /// Chance chose it, and there is no final score of it.
    Drawn,
    /// To be filtered and drawn.
    Open,
}

/// `old`: older than what the monitor's next run looks at.
pub(super) fn place(standing: Option<&Standing>, old: bool, rejudge: bool) -> Place {
    let Some(standing) = standing else { return if old { Place::Open } else { Place::OfRuns } };
    if standing.waits {
        return Place::OfRuns;
    }
    match standing.decision.as_str() {
        "scored" => Place::Scored,
        "drawn" => Place::Drawn,
        "failed" if standing.was_drawn => Place::Drawn,
        // Before it could be drawn.
        "failed" => Place::Open,
        _ if rejudge => Place::Open,
        _ => Place::LeftOut,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_judged_again_drawn_or_left_to_whom_it_belongs() {
        let known = |decision: &str, waits, was_drawn| Some(Standing { decision: decision.to_owned(), waits, was_drawn });
        for (standing, old, rejudge, expected) in [
            (None, true, false, Place::Open),
            (None, false, true, Place::OfRuns),
            (known("scored", false, true), false, false, Place::Scored),
            (known("deferred", true, true), true, true, Place::OfRuns),
            (known("failed", true, true), true, false, Place::OfRuns),
            (known("failed", false, true), true, false, Place::Drawn),
            (known("failed", false, false), true, false, Place::Open),
            (known("drawn", false, true), true, false, Place::Drawn),
            (known("sampled_out", false, false), true, false, Place::LeftOut),
            (known("filtered", false, false), false, true, Place::Open),
            (known("not_applicable", false, true), true, false, Place::LeftOut),
        ] {
            assert_eq!(place(standing.as_ref(), old, rejudge), expected, "{standing:?} {old} {rejudge}");
        }
    }
}
