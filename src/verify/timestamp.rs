//! Signed times: where one stands, how it is written, how far from our clock it may be.

use std::time::Duration;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::place::Place;
use crate::reject::{Reason, Reject};

/// How a time is written. Every form is read strictly, so that a time has one spelling: no sign, no leading zero, no blank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// Unix seconds, exactly ten digits: from 2001 to 2286.
    Seconds,
    /// Unix milliseconds, exactly thirteen digits.
    Millis,
    /// RFC 3339; without a zone it is UTC.
    Rfc3339,
    /// RFC 9110 IMF-fixdate, such as `Sun, 06 Nov 1994 08:49:37 GMT`.
    HttpDate,
}

impl Unit {
    pub(super) const WORDS: &'static [(&'static str, Unit)] =
        &[("s", Self::Seconds), ("ms", Self::Millis), ("rfc3339", Self::Rfc3339), ("http-date", Self::HttpDate)];

    /// The Unix time in milliseconds; `None` where the text is not such a time.
    pub(super) fn parse(self, text: &[u8]) -> Option<i64> {
        let text = std::str::from_utf8(text).ok()?;
        match self {
            Self::Seconds => digits(text, 10)?.checked_mul(1000),
            Self::Millis => digits(text, 13),
            Self::Rfc3339 => rfc3339(text),
            Self::HttpDate => {
                if text.len() != 29 {
                    return None;
                }
                let at = httpdate::parse_http_date(text).ok()?;
                i64::try_from(at.duration_since(std::time::UNIX_EPOCH).ok()?.as_millis()).ok()
            }
        }
    }

    pub(super) fn write(self, now_ms: i64) -> String {
        let seconds = now_ms.div_euclid(1000);
        match self {
            Self::Seconds => seconds.to_string(),
            Self::Millis => now_ms.to_string(),
            Self::Rfc3339 => {
                let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(now_ms) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH);
                at.format(&Rfc3339).unwrap_or_default()
            }
            Self::HttpDate => httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))),
        }
    }

    /// What the unit can tell apart, in milliseconds.
    fn grain(self) -> i64 {
        match self {
            Self::Seconds | Self::HttpDate => 1000,
            Self::Millis | Self::Rfc3339 => 1,
        }
    }
}

fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0')).then(|| text.parse().ok())?
}

fn rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    let shape = b"0000-00-00T00:00:00";
    if bytes.len() < shape.len() || bytes.len() > 40 || !shape.iter().zip(bytes).all(|(s, b)| if *s == b'0' { b.is_ascii_digit() } else { s == b }) {
        return None;
    }
    let zoned = has_zone(text);
    let at = if zoned { OffsetDateTime::parse(text, &Rfc3339) } else { OffsetDateTime::parse(&format!("{text}Z"), &Rfc3339) };
    i64::try_from(at.ok()?.unix_timestamp_nanos() / 1_000_000).ok()
}

fn has_zone(text: &str) -> bool {
    text.ends_with('Z') || text.get(19..).is_some_and(|rest| rest.contains(['+', '-']))
}

/// Where the signed time stands and what is demanded of it.
#[derive(Clone, Debug)]
pub(super) struct Timestamp {
    pub(super) place: Place,
    pub(super) unit: Unit,
    /// How old a time may be. Default 5 min, the Standard Webhooks libraries' choice; a captured request lives that long, but a
    /// copy sent at once is stopped by the replay record and not here.
    pub(super) tolerance: Duration,
    /// How far ahead of our clock it may be; default: as `tolerance`.
    pub(super) future: Duration,
    /// Whether the time is that of the attempt and judged, or that of the event, which retries repeat, and only recorded.
    pub(super) enforced: bool,
    /// Whether a time without a zone is refused: where the next signed part follows without a separator.
    pub(super) zone_needed: bool,
}

impl Timestamp {
    /// Reads and judges a time; both limits are exact to the unit.
    pub(super) fn judge(&self, text: &[u8], now_ms: i64) -> Result<i64, Reject> {
        let malformed = || Reject::new(Reason::SignatureMalformed, format!("{} does not hold a time in the form that is wanted", self.place));
        let at = self.unit.parse(text).ok_or_else(malformed)?;
        if self.zone_needed && self.unit == Unit::Rfc3339 && !std::str::from_utf8(text).is_ok_and(has_zone) {
            return Err(malformed());
        }
        if !self.enforced {
            return Ok(at);
        }
        let grain = self.unit.grain();
        let age = (now_ms.div_euclid(grain) - at.div_euclid(grain)) * grain;
        let limit = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        if age > limit(self.tolerance) {
            return Err(Reject::new(Reason::TimestampStale, format!("the signed time is {} old, more than {}", span(age), span(limit(self.tolerance)))));
        }
        if -age > limit(self.future) {
            return Err(Reject::new(Reason::TimestampFuture, format!("the signed time is {} ahead, more than {}", span(-age), span(limit(self.future)))));
        }
        Ok(at)
    }
}

pub(super) fn span(ms: i64) -> impl std::fmt::Display {
    humantime::format_duration(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(unit: Unit, text: &str, want: Option<i64>) {
        assert_eq!(unit.parse(text.as_bytes()), want, "{unit:?} {text}");
    }

    #[test]
    fn times_have_one_spelling() {
        check(Unit::Seconds, "1760000000", Some(1_760_000_000_000));
        check(Unit::Millis, "1760000000017", Some(1_760_000_000_017));
        for bad in [
            "",
            "0",
            "-1760000000",
            "+1760000000",
            "01760000000",
            "0760000000",
            " 1760000000",
            "1760000000 ",
            "1760000000.0",
            "1.76e9",
            "0x68e77b00",
            "17600000000",
            "176000000",
            "１７６００００００0",
            "1760000000000",
            "99999999999999999999",
            "nan",
            "1_760_000_000",
            "1760000000\n",
        ] {
            check(Unit::Seconds, bad, None);
        }
        check(Unit::Millis, "1760000000", None);
        check(Unit::Rfc3339, "2025-10-09T08:53:20Z", Some(1_760_000_000_000));
        check(Unit::Rfc3339, "2025-10-09T08:53:20.123456789Z", Some(1_760_000_000_123));
        check(Unit::Rfc3339, "2025-10-09T10:53:20+02:00", Some(1_760_000_000_000));
        check(Unit::Rfc3339, "2025-10-09T08:53:20", Some(1_760_000_000_000));
        check(Unit::Rfc3339, "2025-10-09T08:53:20.5", Some(1_760_000_000_500));
        for bad in [
            "2025-10-09",
            "2025-10-09 08:53:20Z",
            "2025-13-09T08:53:20Z",
            "2025-10-09T08:53:20ZZ",
            "2025-10-09t08:53:20z",
            "2025-10-09T08:53Z",
            "2025-10-09T08:53:20.Z",
            "garbage",
        ] {
            check(Unit::Rfc3339, bad, None);
        }
        check(Unit::HttpDate, "Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777_000));
        check(Unit::HttpDate, "Sunday, 06-Nov-94 08:49:37 GMT", None);
        check(Unit::HttpDate, "Sun Nov  6 08:49:37 1994", None);
    }

    #[test]
    fn what_is_written_is_read_again() {
        for (_, unit) in Unit::WORDS {
            let now = 1_760_000_000_000;
            check(*unit, &unit.write(now), Some(now));
        }
    }
}
