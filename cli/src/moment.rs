//! Moments as people write them on a command line: so long ago, or a date and a time of day in UTC.

use std::time::Duration;

use quorate_broker::config::units::parse_duration;
use quorate_client::Doors;

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// So long before now.
    Ago(Duration),
    /// Milliseconds since 1970.
    At(i64),
}

impl Moment {
    /// Milliseconds since 1970.
    pub fn ms(self) -> i64 {
        match self {
            Self::At(ms) => ms,
            Self::Ago(ago) => {
                let now = i64::try_from(Doors::system().clock.now().0).unwrap_or(i64::MAX);
                now.saturating_sub(i64::try_from(ago.as_millis()).unwrap_or(i64::MAX))
            }
        }
    }
}

/// `2h`, which is two hours ago, or `2026-11-24T22:13:20`, with or without a `Z`.
///
/// # Errors
/// What to write instead.
pub fn parse_moment(text: &str) -> Result<Moment, String> {
    if let Ok(ago) = parse_duration(text) {
        return Ok(Moment::Ago(ago));
    }
    at(text).map(Moment::At).ok_or_else(|| {
        format!("{text} is no moment; write how long ago (2h) or a date and a time of day in UTC (2026-11-24T22:13:20)")
    })
}

fn at(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z').unwrap_or(text).split_once('T')?;
    let [year, month, day] = numbers(date, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    let is_day = (1970..=9999).contains(&year) && (1..=days_of_month).contains(&day);
    if !is_day || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some((days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second) * 1000)
}

fn numbers<const N: usize>(text: &str, mark: char) -> Option<[i64; N]> {
    let number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
    let parts: Option<Vec<i64>> = text.split(mark).map(number).collect();
    parts?.try_into().ok()
}

/// Days from the first of January 1970. Counted from the first of March, so that a leap day ends its year.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month > 2 { year } else { year - 1 };
    let from_march = (month + 9) % 12;
    365 * year + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::utc;

    #[test]
    fn a_moment_is_a_date_or_so_long_ago() {
        assert_eq!(parse_moment("2h"), Ok(Moment::Ago(Duration::from_secs(7200))));
        for (text, ms) in [
            ("1970-01-01T00:00:01", 1000),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2026-11-24T22:13:20Z", 1_795_558_400_000),
            ("2100-02-28T23:59:59", 4_107_542_399_000),
        ] {
            assert_eq!(parse_moment(text), Ok(Moment::At(ms)));
            assert_eq!(utc(ms).replace(' ', "T"), text.trim_end_matches('Z'), "and back");
        }
    }

    #[test]
    fn what_is_no_moment_is_refused_with_what_to_write() {
        for text in [
            "yesterday",
            "2026-02-29T00:00:00",
            "2026-13-01T00:00:00",
            "2026-01-01",
            "2026-01-01T24:00:00",
            "1-1-1T1:1:1",
        ] {
            let error = parse_moment(text).expect_err("no moment");
            assert!(error.contains("2026-11-24T22:13:20"), "{error}");
        }
    }
}
