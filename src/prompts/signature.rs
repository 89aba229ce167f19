//! Whether a request is Langfuse's: `x-langfuse-signature: t=SECONDS,v1=HEX`, HMAC-SHA256 over `SECONDS.BODY`. Pure.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// How far the time of a signature may lie from ours, in seconds. Langfuse signs once and sends up to four times within
/// seconds; the rest is for clocks that are off.
const TOLERANCE: i64 = 300;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Genuine,
    /// Of the right key, at the wrong time.
    Stale,
    Forged,
}

/// `header` as it came, `body` byte for byte.
pub(super) fn verify(secret: &str, header: &str, body: &[u8], now_secs: i64) -> Verdict {
    let Some((time, signatures)) = parts(header) else { return Verdict::Forged };
    let genuine = signatures.iter().any(|signature| {
        // Of any length, so it never fails; a key that could not be used would make everything forged.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret.as_bytes()) else { return false };
        mac.update(time.as_bytes());
        mac.update(b".");
        mac.update(body);
        // In constant time.
        mac.verify_slice(signature).is_ok()
    });
    match time.parse::<i64>() {
        _ if !genuine => Verdict::Forged,
        Ok(time) if time.abs_diff(now_secs) <= TOLERANCE.unsigned_abs() => Verdict::Genuine,
        _ => Verdict::Stale,
    }
}

/// The time as written, and the signatures: `v1`, or `s` as Langfuse's pages show it.
fn parts(header: &str) -> Option<(&str, Vec<[u8; 32]>)> {
    let pairs: Vec<(&str, &str)> = header.split(',').filter_map(|pair| pair.trim().split_once('=')).collect();
    let time = pairs.iter().find(|(key, _)| *key == "t")?.1;
    let signatures = pairs.iter().filter(|(key, _)| matches!(*key, "v1" | "s")).filter_map(|(_, text)| blake3::Hash::from_hex(text).ok());
    // Of the same form: 32 bytes in hex.
    Some((time, signatures.map(Into::into).collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "lf-whsec_0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    const TIME: i64 = 1_767_323_045;
    const SIGNATURE: &str = "b4ae47516bbc10f03e3f4812b02f5ed57d9fa37ff2885b2a3c660b520b79f8be";
    const BODY: &[u8] = br#"{"id":"evt-1","timestamp":"2026-01-02T03:04:05.000Z","type":"prompt-version","apiVersion":"v1","action":"created","prompt":{"id":"p1","name":"judge","version":3}}"#;

    #[test]
    fn the_documented_vector_is_genuine_in_its_time_and_nothing_else_is() {
        let header = format!("t={TIME},v1={SIGNATURE}");
        assert_eq!(verify(SECRET, &header, BODY, TIME), Verdict::Genuine);
        assert_eq!(verify(SECRET, &format!("s={SIGNATURE}, t={TIME}"), BODY, TIME + 300), Verdict::Genuine);
        assert_eq!(verify(SECRET, &header, BODY, TIME + 301), Verdict::Stale);
        assert_eq!(verify(SECRET, &header, BODY, TIME - 301), Verdict::Stale);
        assert_eq!(verify("lf-whsec_other", &header, BODY, TIME), Verdict::Forged);
        assert_eq!(verify(SECRET, &header, &BODY[1..], TIME), Verdict::Forged);
        assert_eq!(verify(SECRET, &format!("t={},v1={SIGNATURE}", TIME + 1), BODY, TIME), Verdict::Forged, "the time is signed too");
        for header in ["", SIGNATURE, "t=,v1=", "t=1767323045", &format!("t={TIME},v1={}", &SIGNATURE[1..]), &format!("v1={SIGNATURE}")] {
            assert_eq!(verify(SECRET, header, BODY, TIME), Verdict::Forged, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_other_header_is_genuine(header in "(t=1767323045,)?(v1|s|t)?=?[0-9a-f,=]{0,80}", now in any::<i64>()) {
            prop_assert_eq!(verify(SECRET, &header, BODY, now), Verdict::Forged);
        }
    }
}
