//! How the alerts of a group stand. After Alertmanager: a group is told when something of it changed, and never of what came and
//! went while people were not told anyway.

use std::time::Duration;

use crate::model::{AlertEvent, AlertEventKind};

/// How each alert of a group stands after what happened. One that was resolved is part of it until all are. Whatever is no alert
/// is part of none.
#[must_use]
pub fn stand(known: &[AlertEvent], changes: &[AlertEvent]) -> Vec<AlertEvent> {
    let mut members = known.to_vec();
    for event in changes.iter().filter(|event| event.kind != AlertEventKind::Notice) {
        match members.iter_mut().find(|member| (&member.monitor, &member.alert) == (&event.monitor, &event.alert)) {
            Some(member) => *member = event.clone(),
            None => members.push(event.clone()),
        }
    }
    members
}

/// Whether something begins that is worse than all that people know to fire.
#[must_use]
pub fn louder(known: &[AlertEvent], changes: &[AlertEvent]) -> bool {
    let fires = known.iter().filter(|event| event.kind != AlertEventKind::Resolved);
    let worst = fires.map(|event| event.severity).min();
    changes.iter().any(|event| event.kind == AlertEventKind::Firing && worst.is_none_or(|worst| event.severity < worst))
}

/// Whether all that happened was over within the time that the group waits anyway, so that there is nothing to tell.
#[must_use]
pub fn came_and_went(known: &[AlertEvent], changes: &[AlertEvent], patience: Duration) -> bool {
    let over = |event: &AlertEvent| {
        let ends = changes.iter().rev().find(|other| other.fingerprint == event.fingerprint);
        ends.is_some_and(|end| {
            let took: Duration = end.at.duration_since(event.at).try_into().unwrap_or_default();
            end.kind == AlertEventKind::Resolved && took <= patience
        })
    };
    patience > Duration::ZERO && known.is_empty() && changes.iter().all(|event| event.kind != AlertEventKind::Notice && over(event))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::*;
    use crate::model::Severity;

    fn event(alert: &str, kind: AlertEventKind, second: i64) -> AlertEvent {
        let at = Timestamp::from_second(second).unwrap();
        AlertEvent {
            fingerprint: alert.to_owned(),
            kind,
            monitor: "m".to_owned(),
            alert: alert.to_owned(),
            severity: Severity::Warning,
            condition: String::new(),
            summary: String::new(),
            metric: None,
            value: None,
            interval: None,
            threshold: None,
            n: None,
            window: None,
            since: at,
            at,
            run_id: String::new(),
            labels: BTreeMap::new(),
            worst: Vec::new(),
            history: Vec::new(),
            lines: Vec::new(),
        }
    }

    use AlertEventKind::{Firing, Notice, Repeat, Resolved};

    #[test]
    fn what_ends_within_the_groups_wait_is_not_told() {
        let went = |known: &[AlertEvent], changes: &[AlertEvent], secs| came_and_went(known, changes, Duration::from_secs(secs));
        let (begin, end) = (event("a", Firing, 0), event("a", Resolved, 20));
        assert!(went(&[], &[begin.clone(), end.clone()], 30));
        assert!(!went(&[], &[begin.clone(), end.clone()], 10), "it lasted longer: somebody was just not reached");
        assert!(!went(&[], &[begin.clone(), end.clone()], 0), "a group that waits for nothing hides nothing");
        assert!(!went(&[], std::slice::from_ref(&begin), 30) && !went(&[], &[begin.clone(), end.clone(), event("b", Firing, 5)], 30));
        assert!(!went(std::slice::from_ref(&begin), std::slice::from_ref(&end), 30), "people know of it");
        assert!(!went(&[], &[event("n", Notice, 0)], 30));
    }

    #[test]
    fn what_is_worse_than_all_that_fires_is_louder() {
        let of = |severity| AlertEvent { severity, ..event("a", Firing, 0) };
        assert!(louder(&[of(Severity::Warning)], &[of(Severity::Critical)]) && louder(&[], &[of(Severity::Info)]));
        assert!(!louder(&[of(Severity::Warning)], &[of(Severity::Warning)]) && !louder(&[of(Severity::Critical)], &[of(Severity::Info)]));
        assert!(louder(&[AlertEvent { kind: Resolved, ..of(Severity::Critical) }], &[of(Severity::Info)]), "what is over is not heard");
    }

    fn kind() -> impl Strategy<Value = AlertEventKind> {
        prop_oneof![Just(Firing), Just(Repeat), Just(Resolved), Just(Notice)]
    }

    proptest! {
        #[test]
        fn telling_at_once_or_bit_by_bit_ends_the_same(events in prop::collection::vec(("[a-c]", kind()), 0..20), cut in 0_usize..20) {
            let events: Vec<AlertEvent> = (0..).zip(events).map(|(at, (alert, kind))| event(&alert, kind, at)).collect();
            let (head, tail) = events.split_at(cut.min(events.len()));
            prop_assert_eq!(stand(&stand(&[], head), tail), stand(&[], &events));
        }

        #[test]
        fn each_alert_stands_as_its_newest_event_says(events in prop::collection::vec(("[a-c]", kind()), 0..20)) {
            let events: Vec<AlertEvent> = (0..).zip(events).map(|(at, (alert, kind))| event(&alert, kind, at)).collect();
            for member in stand(&[], &events) {
                let newest = events.iter().rev().find(|event| event.alert == member.alert && event.kind != Notice);
                prop_assert_eq!(Some(&member), newest);
            }
        }
    }
}
