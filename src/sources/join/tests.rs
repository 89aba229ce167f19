use proptest::prelude::*;

use super::*;
use crate::sources::given::Given;

/// Of (seconds, key) each.
fn given(items: &[(i64, u8)]) -> Arc<Given> {
    let item = |(at, (second, key)): (usize, &(i64, u8))| {
        let timestamp = Timestamp::from_second(*second).unwrap();
        let trace: Trace = serde_json::from_value(json!({ "id": at.to_string(), "timestamp": timestamp, "key": key })).unwrap();
        Fetched { id: trace.id.clone(), timestamp, dated: true, body: Ok(Arc::new(trace)) }
    };
    Arc::new(Given(items.iter().enumerate().map(item).collect()))
}

const HOUR: i64 = 3600;

/// (left's id, right's time, how many), in the order they came.
fn joined(left: &[(i64, u8)], right: &[(i64, u8)], how: How, most_bytes: usize) -> Result<Vec<(String, Option<i64>, u64)>, SourceError> {
    let key = || Key(vec![Expr::lenient("trace.key").unwrap()]);
    let (left, right) = (given(left), given(right));
    let join = Join { left, right, left_key: key(), right_key: key(), how, buffer: SignedDuration::from_secs(60), id: None, most_bytes };
    let told = |item: Fetched| {
        let trace = item.body.unwrap();
        let right = trace.extra.get("right").map(|right| right["timestamp"].as_str().unwrap().parse::<Timestamp>().unwrap().as_second());
        (item.id, right, trace.extra["rights"].as_u64().unwrap())
    };
    Ok(fetched(&join)?.into_iter().map(told).collect())
}

fn fetched(join: &Join) -> Result<Vec<Fetched>, SourceError> {
    let window = Window { from: Timestamp::UNIX_EPOCH, to: Timestamp::from_second(HOUR).unwrap() };
    let (pages, mut received) = Pages::channel(1000);
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(join.fetch(window, &pages))?;
    drop(pages);
    Ok(std::iter::from_fn(|| received.try_recv().ok()).flatten().collect())
}

proptest! {
    #[test]
    fn each_item_has_the_nearest_of_its_key(mut left in prop::collection::vec((0..HOUR, 0_u8..6), 0..20), right in prop::collection::vec((-90..HOUR + 90, 0_u8..6), 0..20)) {
        left.sort_unstable();
        let expected: Vec<_> = left.iter().enumerate().map(|(at, (second, key))| {
            let same: Vec<i64> = right.iter().filter(|(at, other)| other == key && (at - second).abs() <= 60).map(|(at, _)| *at).collect();
            (at.to_string(), same.iter().map(|at| (at - second).abs()).min(), same.len() as u64)
        }).collect();
        let far = |found: Vec<(String, Option<i64>, u64)>| found.into_iter().map(|(id, right, n)| {
            let second = left[id.parse::<usize>().unwrap()].0;
            (id, right.map(|right| (right - second).abs()), n)
        }).collect::<Vec<_>>();
        prop_assert_eq!(far(joined(&left, &right, How::Left, usize::MAX).unwrap()), expected.clone());
        let inner: Vec<_> = expected.into_iter().filter(|(.., n)| *n > 0).collect();
        prop_assert_eq!(far(joined(&left, &right, How::Inner, usize::MAX).unwrap()), inner);
    }
}

#[test]
fn what_an_item_gets_does_not_hang_on_the_window_it_lies_in() {
    let (left, right) = ([(100, 1), (3000, 1)], [(30, 1), (90, 1), (1000, 1), (3070, 1)]);
    let whole = joined(&left, &right, How::Left, usize::MAX).unwrap();
    assert_eq!(whole, [("0".to_owned(), Some(90), 1), ("1".to_owned(), None, 0)], "the others lie further than the buffer");
    // In narrow parts, as by as many runs.
    assert_eq!(joined(&left, &right, How::Left, 200).unwrap(), whole);
}

#[test]
fn a_right_side_without_a_time_is_near_to_every_item() {
    let key = || Key(vec![Expr::lenient("trace.key").unwrap()]);
    let undated = Arc::new(Given(given(&[(3500, 1)]).0.iter().map(|item| Fetched { dated: false, ..item.clone() }).collect()));
    let join = Join {
        left: given(&[(100, 1)]),
        right: undated,
        left_key: key(),
        right_key: key(),
        how: How::Inner,
        buffer: SignedDuration::from_secs(60),
        id: None,
        most_bytes: usize::MAX,
    };
    assert_eq!(fetched(&join).unwrap().len(), 1);
}

#[test]
fn a_key_that_does_not_fit_the_data_is_told() {
    let join = |left: &str, right: &str| {
        let key = |text: &str| Key(vec![Expr::lenient(text).unwrap()]);
        let (left_key, right_key) = (key(left), key(right));
        Join {
            left: given(&[(1, 1)]),
            right: given(&[(1, 1)]),
            left_key,
            right_key,
            how: How::Inner,
            buffer: SignedDuration::ZERO,
            id: None,
            most_bytes: usize::MAX,
        }
    };
    let items = fetched(&join("trace.key | lowr", "trace.key")).unwrap();
    assert!(items[0].body.as_ref().unwrap_err().starts_with("join: on.left: "), "{items:?}");
    let error = fetched(&join("trace.key", "trace.key | lowr")).unwrap_err();
    assert!(matches!(&error, SourceError::Refused(message) if message.contains("on.right")), "{error}");
    assert!(fetched(&join("trace.nothing.at_all", "trace.key")).unwrap().is_empty(), "what is missing is no error");
}

#[test]
fn a_right_side_that_is_too_large_is_taken_in_parts_and_nothing_is_lost() {
    let all: Vec<(i64, u8)> = (0..200).map(|i| (i * 18, u8::try_from(i).unwrap())).collect();
    let found = joined(&all, &all, How::Inner, 2000).unwrap();
    assert_eq!(found, all.iter().enumerate().map(|(at, (second, _))| (at.to_string(), Some(*second), 1)).collect::<Vec<_>>());
    let error = joined(&all, &all, How::Inner, 100).unwrap_err();
    assert!(matches!(&error, SourceError::Refused(message) if message.contains("right side")), "{error}");
}
