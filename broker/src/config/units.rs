//! Durations and sizes as people write them: `"3s"`, `"100ms"`, `"1GiB"`, `"16KiB"`.
//!
//! Used by the config structs through `#[serde(with = …)]`, and by the command line for its flags. A bare number is refused, because
//! nobody can see whether it meant seconds or milliseconds.

use std::time::Duration;

/// A text that is not a duration or size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}; write a whole number with a unit ({units}), for example {example:?}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    units: &'static str,
    example: &'static str,
}

const DURATIONS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60 * 1_000), ("h", 60 * 60 * 1_000), ("d", 24 * 60 * 60 * 1_000)];

const SIZES: [(&str, u64); 5] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads `"100ms"`, `"3s"`, `"5m"`, `"72h"`, `"7d"`, and `"0"`.
///
/// # Errors
/// A missing or unknown unit, or a number that does not fit.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = UnitError { text: text.to_owned(), what: "duration", units: "ms s m h d", example: "3s" };
    number_with_unit(text, &DURATIONS).map(Duration::from_millis).ok_or(error)
}

/// Writes a duration so that [`parse_duration`] reads it back, in the largest unit that divides it.
pub fn format_duration(duration: Duration) -> String {
    write_with_unit(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATIONS)
}

/// Reads `"512B"`, `"16KiB"`, `"4MiB"`, `"1GiB"`, and `"0"`. Units are powers of 1024.
///
/// # Errors
/// A missing or unknown unit, or a number that does not fit.
pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let error = UnitError { text: text.to_owned(), what: "size", units: "B KiB MiB GiB TiB", example: "1GiB" };
    number_with_unit(text, &SIZES).ok_or(error)
}

/// Writes a size so that [`parse_bytes`] reads it back, in the largest unit that divides it.
pub fn format_bytes(bytes: u64) -> String {
    write_with_unit(bytes, &SIZES)
}

fn number_with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: u64 = number.parse().ok()?;
    let unit = unit.trim();
    if number == 0 && unit.is_empty() {
        return Some(0);
    }
    let (_, factor) = units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    number.checked_mul(*factor)
}

fn write_with_unit(value: u64, units: &[(&str, u64)]) -> String {
    let (name, factor) =
        units.iter().rev().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)).unwrap_or(&units[0]);
    format!("{}{name}", value / factor)
}

/// `#[serde(with = "units::duration")]`
pub(super) mod duration {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_duration(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        super::parse_duration(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// `#[serde(with = "units::bytes")]`
pub(super) mod bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_bytes(*value))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        super::parse_bytes(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_and_written_the_same() {
        for (text, ms) in [("100ms", 100), ("3s", 3_000), ("5m", 300_000), ("72h", 259_200_000), ("0ms", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(parse_duration(&format_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)));
        }
        for (text, bytes) in [("512B", 512), ("16KiB", 16 << 10), ("1 GiB", 1 << 30), ("0", 0), ("1536MiB", 1536 << 20)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
            assert_eq!(parse_bytes(&format_bytes(bytes)), Ok(bytes));
        }
    }

    #[test]
    fn a_number_without_a_unit_is_refused_with_an_example() {
        let error = parse_duration("30").expect_err("no unit").to_string();
        assert!(error.contains("\"30\"") && error.contains("\"3s\""), "{error}");
        assert!(parse_bytes("1GB").is_err());
        assert!(parse_bytes("-1B").is_err());
        assert!(parse_bytes("99999999999TiB").is_err());
    }
}
